"""Does the image show its prompt? Cosine similarity of CLIP embeddings (Radford et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo.rewards import EMOJI_CLIP, RewardEntry
from ddpo.rewards.clip import ClipTower, load_clip
from ddpo.rewards.image_batch import BatchReward

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from ddpo.rewards.image_batch import ImageBatch


class ClipAlignment(BatchReward):
    """Cosine similarity in [-1, 1] between image and prompt.

    Args:
        clip: gives the embeddings.
    """

    def __init__(self, clip: ClipTower) -> None:
        self.clip = clip

    def score(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:
        """See `BatchReward`."""
        return self.clip.cosine(batch, prompts)

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """See `BatchReward`."""
        return self.clip.cut(prompts)


def build(sources: Mapping[str, str], device: torch.device, dtype: str) -> ClipAlignment:
    """See `RewardEntry`."""
    return ClipAlignment(load_clip(sources["clip"], device, dtype))


REWARD = RewardEntry(
    unit="cosine",
    meaning="does the picture show its prompt: cosine of CLIP embeddings",
    published="Radford et al. 2021",
    parts={
        "clip": EMOJI_CLIP,
    },
    is_differentiable=True,
    build=build,
)
