"""Contrast of a picture: root mean square contrast, Peli 1990 (J. Opt. Soc. Am. A 7), eq. 4."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo.devices import at_least_float32
from ddpo.rewards import RewardEntry
from ddpo.rewards.luma import luma

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def rms_contrast(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:  # noqa: ARG001
    """Standard deviation of grey values in [0, 1].

    Args:
        images: (rows, 3, H, W) in [0, 1].
        prompts: not used.

    Returns:
        (rows,) float32; 0 for a uniform picture, 0.5 for one that is half black and half white.
    """
    return luma(at_least_float32(images)).flatten(1).std(dim=1, correction=0)


REWARD = RewardEntry(
    unit="grey value / 255",
    meaning="light beside dark: standard deviation of the grey values",
    published="Peli 1990, root mean square contrast",
    is_differentiable=True,
    build=lambda *_: rms_contrast,
)
