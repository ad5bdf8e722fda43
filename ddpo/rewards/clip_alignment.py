"""Does the image show its prompt? Cosine similarity of CLIP embeddings (Radford et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo.rewards.image_batch import BatchReward

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ddpo.rewards.clip import ClipTower
    from ddpo.rewards.image_batch import ImageBatch


class ClipAlignment(BatchReward):
    """Cosine similarity in [-1, 1] between image and prompt.

    Args:
        clip: whose embeddings are compared.
    """

    def __init__(self, clip: ClipTower) -> None:
        self.clip = clip

    def score(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:
        """See `BatchReward`."""
        return self.clip.cosine(batch, prompts)
