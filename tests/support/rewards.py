"""Rewards for tests."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

import torch

from ddpo.rewards import RewardEntry
from ddpo.rewards.lookup import build_reward
from tests.support.rig import make_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def brightness(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Mean of all channels."""
    return images.mean(dim=(1, 2, 3))


def flawed(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """As above, but infinite for the first picture of a call and NaN for its last."""
    scores = brightness(images, prompts)
    scores[0], scores[-1] = torch.inf, torch.nan
    return scores


def build(name: str, **parts: object) -> Any:
    """A reward of the table on the CPU, with sources for some of its parts."""
    sources = tuple(f"{name}.{part}={source}" for part, source in parts.items())
    settings = make_settings(rewards={"sources": sources}).rewards
    return build_reward(name, settings, torch.device("cpu"))[0]


def module_of(name: str, reward: Callable[..., torch.Tensor], **entry: Any) -> str:
    """The name of a new module that holds this reward, for the table of rewards."""
    module = types.ModuleType(f"reward_{name}")
    module.REWARD = RewardEntry(unit="1", build=lambda *_: reward, **entry)  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    return module.__name__
