"""PickScore (Kirstain et al. 2023, eq. 2): a CLIP-H tuned to the choices of a web page's users.

The score is `T E_text(x) . E_image(y)`, with unit embeddings and the model's own temperature T.
Only differences between scores for the same prompt have a meaning: the paper turns them into
probabilities by a softmax. Licences are as stated by the repositories.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo.rewards import Part, RewardEntry
from ddpo.rewards.clip import ClipTower, load_clip
from ddpo.rewards.image_batch import BatchReward
from ddpo.rewards.published import PICK_SCORE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

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

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """See `BatchReward`."""
        return self.clip.cut(prompts)


def build(sources: Mapping[str, str], device: torch.device, dtype: str) -> PickScore:
    """See `RewardEntry`."""
    return PickScore(load_clip(sources["model"], device, dtype, sources["processor"]))


REWARD = RewardEntry(
    unit="logit",
    meaning="which picture do people pick for this prompt: PickScore",
    published="Kirstain et al. 2023, eq. 2",
    parts={
        "model": Part(source="yuvalkirstain/PickScore_v1", licence="MIT", model=PICK_SCORE),
        "processor": Part(source="laion/CLIP-ViT-H-14-laion2B-s32B-b79K", licence="MIT"),
    },
    is_differentiable=True,
    build=build,
)
