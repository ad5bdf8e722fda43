"""CLIPScore: 100 max(cos, 0) of CLIP embeddings.

Hessel et al. 2021, eq. 1, is `w max(cos(c, v), 0)` with w = 2.5, ViT-B/32, and captions that begin
with "A photo depicts". The field's text-to-image tables, and torchmetrics by default, use w = 100,
ViT-L/14 and the bare prompt. So does this reward. Weights: CLIP by OpenAI (MIT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo.rewards import Part, RewardEntry
from ddpo.rewards.clip import ClipTower, load_clip
from ddpo.rewards.image_batch import BatchReward
from ddpo.rewards.published import CLIP_L_14

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from ddpo.rewards.image_batch import ImageBatch

WEIGHT = 100.0


class ClipScore(BatchReward):
    """CLIPScore, 0 to 100; Stable Diffusion's pictures score near 25 for their prompts.

    Args:
        clip: gives the embeddings.
    """

    def __init__(self, clip: ClipTower) -> None:
        self.clip = clip

    def score(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:
        """See `BatchReward`."""
        return WEIGHT * self.clip.cosine(batch, prompts).clamp(min=0)

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """See `BatchReward`."""
        return self.clip.cut(prompts)


def build(sources: Mapping[str, str], device: torch.device, dtype: str) -> ClipScore:
    """See `RewardEntry`."""
    return ClipScore(load_clip(sources["clip"], device, dtype))


REWARD = RewardEntry(
    unit="100 x cosine",
    meaning="does the picture show its prompt: CLIPScore, 100 max(cos, 0)",
    published="Hessel et al. 2021, eq. 1, with the weight 100",
    parts={
        "clip": Part(source="openai/clip-vit-large-patch14", licence="MIT", model=CLIP_L_14),
    },
    is_differentiable=True,
    build=build,
)
