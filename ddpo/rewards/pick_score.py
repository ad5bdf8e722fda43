"""PickScore (Kirstain et al. 2023, eq. 2): a CLIP-H tuned to what users of a web page picked.

Score: `T E_text(x) . E_image(y)` with unit embeddings and the model's own temperature T. Weights:
`yuvalkirstain/PickScore_v1` (MIT, as its repository says), processor of
`laion/CLIP-ViT-H-14-laion2B-s32B-b79K` (MIT). Only differences of scores under one prompt mean
anything: the paper turns them into probabilities by a softmax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo.rewards.image_batch import BatchReward

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ddpo.rewards.clip import ClipTower
    from ddpo.rewards.image_batch import ImageBatch


class PickScore(BatchReward):
    """PickScore in logits, about 17 to 24.

    Args:
        clip: with PickScore's weights.
    """

    def __init__(self, clip: ClipTower) -> None:
        self.clip = clip

    def score(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:
        """See `BatchReward`."""
        return self.clip.temperature * self.clip.cosine(batch, prompts)
