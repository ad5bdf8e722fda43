"""How light a picture is: mean relative luminance (ITU-R Rec. 709 of linear sRGB)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo.devices import at_least_float32
from ddpo.rewards import RewardEntry
from ddpo.rewards.luma import relative_luminance

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def brightness(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:  # noqa: ARG001
    """Mean relative luminance.

    Args:
        images: (rows, 3, H, W) in [0, 1], sRGB.
        prompts: not used.

    Returns:
        (rows,) float32; 0 for black, 1 for white, 0.2140 for the middle grey 0.5.
    """
    return relative_luminance(at_least_float32(images)).flatten(1).mean(dim=1)


REWARD = RewardEntry(
    unit="relative luminance",
    meaning="much light: mean relative luminance",
    published="ITU-R Rec. 709, IEC 61966-2-1",
    is_differentiable=True,
    build=lambda *_: brightness,
)
