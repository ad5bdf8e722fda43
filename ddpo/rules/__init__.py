"""Update rules: the losses that optimiser steps minimise.

A rule is a file in this folder and a line in `UPDATE_RULES`. `train.update_rule` names that line.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config.base import Settings
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


def make_rule(sampler: Sampler, settings: Settings) -> UpdateRule:
    """The rule named by `train.update_rule`, wrapped in a KL penalty if `train.kl_coef` is above 0.

    Args:
        sampler: the rollouts' own.
        settings: of the run.
    """
    from ddpo.rules.kl_penalty import KlPenalty  # noqa: PLC0415 - imports torch

    rule = find_rule(settings.train.update_rule)(sampler, settings)
    return KlPenalty(rule, settings.train.kl_coef) if settings.train.kl_coef > 0 else rule
