"""Rewards for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


def brightness(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Mean of all channels."""
    return images.mean(dim=(1, 2, 3))


def flawed(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """As above, but infinite for the first picture of a call and NaN for the last."""
    scores = brightness(images, prompts)
    scores[0], scores[-1] = torch.inf, torch.nan
    return scores
