"""Colourfulness of an image: Hasler and Suesstrunk 2003, metric M(3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ddpo.devices import at_least_float32
from ddpo.rewards import RewardEntry

if TYPE_CHECKING:
    from collections.abc import Sequence


def colorfulness(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:  # noqa: ARG001
    """Spread of the opponent colours plus 0.3 times their distance from grey.

    With rg = R - G and yb = (R + G)/2 - B on the 0..255 scale:
    M = sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2).

    Args:
        images: (rows, 3, H, W) in [0, 1].
        prompts: not used.

    Returns:
        (rows,) float32; 0 for grey images, about 100 for extremely colourful ones.
    """
    red, green, blue = (255 * at_least_float32(images)).flatten(2).unbind(dim=1)
    rg, yb = red - green, (red + green) / 2 - blue
    spread = (rg.var(dim=1, correction=0) + yb.var(dim=1, correction=0)).sqrt()
    distance = (rg.mean(dim=1).square() + yb.mean(dim=1).square()).sqrt()
    return spread + 0.3 * distance


REWARD = RewardEntry(
    unit="Hasler-Suesstrunk M",
    meaning="strong, varied colours",
    published="Hasler and Suesstrunk 2003, M(3)",
    is_differentiable=True,
    build=lambda *_: colorfulness,
)
