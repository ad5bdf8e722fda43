"""The rewards: what an image is worth for one objective. Adding one is a file and an entry here.

A reward is built once by its factory and then called from a worker thread:

    reward = REWARDS["jpeg_compressibility"].build(settings, device)
    scores = reward(images, prompts)   # (rows, 3, H, W) in [0, 1], one prompt per row -> (rows,)

Factories import what they need themselves, so that listing the table costs nothing. Rewards that
are not in the table, a user's own and remote ones, are found by `ddpo/rewards/find.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from config.schema import RewardSettings


class Reward(Protocol):
    """Scores a batch of images; larger is better."""

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores (rows,) of images (rows, 3, H, W) in [0, 1], one prompt per row."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardEntry:
    """A row of the table.

    Attributes:
        unit: what one unit of the score is.
        measures: one sentence on what a large score means.
        source: where the measure was published.
        weights: what is downloaded and its licence; empty for a formula.
        build: makes the reward from its settings, on a device.
    """

    unit: str
    measures: str = ""
    source: str = ""
    weights: str = ""
    build: Callable[[RewardSettings, torch.device], Reward]


def _jpeg_compressibility(settings: RewardSettings, device: torch.device) -> Reward:  # noqa: ARG001
    from ddpo.rewards.jpeg import JpegSize  # noqa: PLC0415

    return JpegSize(sign=-1)


def _jpeg_incompressibility(settings: RewardSettings, device: torch.device) -> Reward:  # noqa: ARG001
    from ddpo.rewards.jpeg import JpegSize  # noqa: PLC0415

    return JpegSize(sign=1)


def _colorfulness(settings: RewardSettings, device: torch.device) -> Reward:  # noqa: ARG001
    from ddpo.rewards.colorfulness import colorfulness  # noqa: PLC0415

    return colorfulness


def _clip_alignment(settings: RewardSettings, device: torch.device) -> Reward:
    from ddpo.rewards.clip_alignment import ClipAlignment  # noqa: PLC0415

    return ClipAlignment(settings.clip_model, device)


def _aesthetic_score(settings: RewardSettings, device: torch.device) -> Reward:
    from ddpo.rewards.aesthetic_score import AestheticScore  # noqa: PLC0415

    return AestheticScore(settings.aesthetic_clip, settings.aesthetic_head, device)


REWARDS: dict[str, RewardEntry] = {
    "clip_alignment": RewardEntry(
        unit="cosine",
        measures="does the picture show its prompt: cosine of CLIP embeddings",
        source="Radford et al. 2021",
        weights="`rewards.clip_model`; by default emoji-clip, which ships with the project",
        build=_clip_alignment,
    ),
    "aesthetic_score": RewardEntry(
        unit="LAION 1-10",
        measures="do people find it beautiful: LAION's improved aesthetic predictor",
        source="Schuhmann 2022; DDPO 5.2 (Black et al. 2024)",
        weights="CLIP ViT-L/14 (MIT) and a head (Apache 2.0)",
        build=_aesthetic_score,
    ),
    "jpeg_compressibility": RewardEntry(
        unit="-kB",
        measures="small files: negated size as JPEG of quality 95",
        source="DDPO 5.1 (Black et al. 2024)",
        build=_jpeg_compressibility,
    ),
    "jpeg_incompressibility": RewardEntry(
        unit="kB",
        measures="large files: size as JPEG of quality 95",
        source="DDPO 5.1 (Black et al. 2024)",
        build=_jpeg_incompressibility,
    ),
    "colorfulness": RewardEntry(
        unit="Hasler-Suesstrunk M",
        measures="strong, varied colours",
        source="Hasler and Suesstrunk 2003, M(3)",
        build=_colorfulness,
    ),
}
