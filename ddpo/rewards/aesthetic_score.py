"""LAION's improved aesthetic predictor, the aesthetic reward of DDPO (Black et al. 2024, 5.2).

The head is "sac+logos+ava1-l14-linearMSE" by Christoph Schuhmann, as TRL's DDPO example hosts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ddpo.rewards import Part, RewardEntry
from ddpo.rewards.clip import ClipTower, load_clip
from ddpo.rewards.image_batch import BatchReward
from ddpo.rewards.published import CLIP_L_14
from ddpo.rewards.weights import load_into, load_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ddpo.rewards.image_batch import ImageBatch

_HEAD = "aesthetic_score.head"


def make_head(width: int = 768) -> nn.Sequential:
    """The predictor: five linear layers with dropout between them and no activation."""
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )


def load_head(source: str) -> nn.Sequential:
    """The frozen head from a file of tensors, see `load_tensors`.

    Raises:
        UserError: if there is no such file, or its tensors are not a head's.
    """
    state = load_tensors(_HEAD, source)
    state = {name.removeprefix("layers."): tensor for name, tensor in state.items()}
    first = state.get("0.weight")
    head = make_head(768 if first is None else first.shape[-1])
    load_into(head, state, _HEAD, source)
    return head.requires_grad_(False).eval()


class AestheticScore(BatchReward):
    """A head's score of images, for LAION's head about 1 to 10.

    Args:
        clip: gives the image embedding that the head reads.
        head: from embeddings (rows, D) to a score each, as `load_head` returns it; it runs in
            float32 on the CLIP's device.
    """

    def __init__(self, clip: ClipTower, head: nn.Module) -> None:
        self.clip = clip
        self.head = head.to(clip.device)

    def score(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:  # noqa: ARG002
        """See `BatchReward`; the prompts do not matter."""
        scores: torch.Tensor = self.head(self.clip.embed_images(batch))
        return scores.flatten()


def build(sources: Mapping[str, str], device: torch.device, dtype: str) -> AestheticScore:
    """See `RewardEntry`."""
    return AestheticScore(load_clip(sources["clip"], device, dtype), load_head(sources["head"]))


REWARD = RewardEntry(
    unit="LAION 1-10",
    meaning="do people find it beautiful: LAION's improved aesthetic predictor",
    published="Schuhmann 2022; DDPO 5.2 (Black et al. 2024)",
    parts={
        "clip": Part(source="openai/clip-vit-large-patch14", licence="MIT", model=CLIP_L_14),
        "head": Part(
            source="trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth", licence="Apache 2.0"
        ),
    },
    is_differentiable=True,
    build=build,
)
