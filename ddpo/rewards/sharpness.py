"""Sharpness as the variance of the Laplacian: Pech-Pacheco et al. 2000 (ICPR), "LAPV"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo.devices import at_least_float32
from ddpo.rewards import RewardEntry
from ddpo.rewards.luma import luma

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def sharpness(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:  # noqa: ARG001
    """Variance of a picture's Laplacian, with grey values from 0 to 255.

    The Laplacian uses the four neighbours of a pixel; pixels at the border are left out. Noise
    counts as sharpness.

    Args:
        images: (rows, 3, H, W) in [0, 1], at least 3 pixels each way.
        prompts: not used.

    Returns:
        (rows,) float32; 0 for uniform pictures and linear ramps.
    """
    grey = 255 * luma(at_least_float32(images))
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (around - 4 * inner).flatten(1).var(dim=1, correction=0)


REWARD = RewardEntry(
    unit="grey value^2",
    meaning="sharp edges (and noise): variance of the Laplacian",
    published="Pech-Pacheco et al. 2000, LAPV",
    is_differentiable=True,
    build=lambda *_: sharpness,
)
