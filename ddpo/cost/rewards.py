"""The cost of objectives and guards beside the base model, from a table, without their files."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from ddpo.cost.plan import RewardFootprint
from ddpo.devices import DTYPES
from ddpo.rewards import EMOJI_CLIP, PICTURE_GUARDS, REWARDS, parts_of, reward_entry
from ddpo.rules import find_rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from config.base import RewardSettings, Settings
    from ddpo.rewards.published import PublishedModel

BESIDE = ("", "cuda", "cuda:0")  # values of `rewards.device` that mean the base model's


def reward_footprint(settings: Settings) -> RewardFootprint:
    """FLOPs and bytes of the models of objectives and guards, if they are beside the base model.

    Rewards that share a model pass a picture through it once. Formulas, the embedded CLIP, remote
    rewards and the user's own count nothing.
    """
    rewards = settings.rewards
    if rewards.device not in BESIDE:
        return RewardFootprint()
    objectives = reward_models(rewards.names, rewards)
    guards = reward_models(settings.guards.names, rewards)
    followed = reward_models((n for n in rewards.names if n not in rewards.black_boxes), rewards)
    if not find_rule(settings.train.update_rule).cost(settings).last_steps:
        followed = {}
    loaded = (objectives | guards).values()
    size = DTYPES[rewards.dtype].itemsize
    return RewardFootprint(
        weight_bytes=size * sum(model.parameters for model in loaded),
        score_flops=sum(model.score_flops for model in objectives.values()),
        ascent_flops=sum(model.ascent_flops for model in followed.values()),
        guard_flops=sum(model.score_flops for model in guards.values()),
        score_bytes=size * sum(model.score_entries for model in loaded),
        ascent_bytes=size * sum(model.ascent_entries for model in followed.values()),
    )


def reward_models(names: Iterable[str], settings: RewardSettings) -> dict[str, PublishedModel]:
    """Source -> the model there that rewards or guards are built from.

    An unpublished model from another source than the default is assumed to be built like the
    default.
    """
    found = {}
    for name in names:
        if name in settings.remote_names or not (name in REWARDS or name in PICTURE_GUARDS):
            continue
        defaults = parts_of(name)
        for part, where in parts_of(name, settings.sources).items():
            model = _published().get(where.source, defaults[part].model)
            if model is not None and where.source != EMOJI_CLIP.source:
                found[where.source] = model
    return found


@lru_cache(maxsize=1)
def _published() -> dict[str, PublishedModel | None]:
    """Default source of every part of every reward -> its model."""
    parts = (part for name in REWARDS for part in reward_entry(name).parts.values())
    return {part.source: part.model for part in parts}
