"""Update rules: the losses that optimiser steps minimise.

A rule is a file in this folder and a line in `UPDATE_RULES`. `train.update_rule` names that line.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from ddpo.steps import trained_steps

if TYPE_CHECKING:
    from config.base import Settings
    from ddpo.ddim import Schedule
    from ddpo.rules.rule import Rule, UpdateRule
    from ddpo.sampler import Sampler

# Name -> class. Imported on demand: settings are checked before torch is imported.
UPDATE_RULES = {
    "ddpo": "ddpo.rules.ddpo:Ddpo",
    "diffusion_nft": "ddpo.rules.diffusion_nft:DiffusionNft",
    "awm": "ddpo.rules.awm:AdvantageWeightedMatching",
    "reward_gradient": "ddpo.rules.reward_gradient:RewardGradient",
}


def find_rule(name: str) -> type[Rule]:
    """The class of a rule in `UPDATE_RULES`."""
    rule: type[Rule] = resolve_name(UPDATE_RULES[name])
    return rule


def policy_gradient_steps(settings: Settings, schedule: Schedule) -> list[int] | None:
    """The steps that a run trains one by one; None if it only follows gradients of rewards.

    Raises:
        UserError: see `trained_steps`.
    """
    if not find_rule(settings.train.update_rule).cost(settings).learns_from_pairs:
        return None
    return trained_steps(schedule, settings.train.max_sensitivity)


def make_rule(sampler: Sampler, settings: Settings) -> UpdateRule:
    """The rule named by `train.update_rule`, wrapped in a KL penalty if `train.kl_coef` is above 0.

    Args:
        sampler: the rollouts' own.
        settings: of the run.
    """
    from ddpo.rules.kl_penalty import KlPenalty  # noqa: PLC0415 - imports torch

    rule = find_rule(settings.train.update_rule)(sampler, settings)
    return KlPenalty(rule, settings.train.kl_coef) if settings.train.kl_coef > 0 else rule
