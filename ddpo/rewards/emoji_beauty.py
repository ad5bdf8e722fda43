"""Is the picture clean and well formed? The embedded model's counterpart of the aesthetic score.

A small head on the image embedding of the embedded CLIP. It was trained to put real drawings above
failed and damaged ones (`tools/emoji_beauty.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ddpo.assets import ASSETS
from ddpo.rewards import Part, RewardEntry
from ddpo.rewards.aesthetic_score import AestheticScore
from ddpo.rewards.clip import load_clip
from ddpo.rewards.weights import load_into, load_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDTH = 64  # of the CLIP's embedding
BEST = 10.0  # the score that well made pictures were trained towards

_HIDDEN = 64
_HEAD = "emoji_beauty.head"
_EMBEDDED = "emoji64-beauty"  # ships with the project


class BeautyHead(nn.Module):
    """Two layers from a unit vector (rows, WIDTH) to a score (rows,), about 0 to 10."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, _HIDDEN), nn.GELU()
        )
        self.answer = nn.Linear(_HIDDEN, 1)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Scores (rows,) of unit vectors (rows, WIDTH)."""
        answers = self.answer(self.layers(embeddings * WIDTH**0.5))[:, 0]
        return torch.as_tensor(BEST / 2 * (1 + answers))


def load_beauty(source: str = _EMBEDDED) -> BeautyHead:
    """The frozen head, in float32; `source` as for `load_tensors`, or "emoji64-beauty".

    Raises:
        UserError: if there is no such file, or its tensors are not this head's.
    """
    file = str(ASSETS / _EMBEDDED / "head.safetensors") if source == _EMBEDDED else source
    head = BeautyHead()
    load_into(head, load_tensors(_HEAD, file), _HEAD, source)
    return head.requires_grad_(False).eval()


def build(sources: Mapping[str, str], device: torch.device, dtype: str) -> AestheticScore:
    """See `RewardEntry`."""
    return AestheticScore(load_clip(sources["clip"], device, dtype), load_beauty(sources["head"]))


REWARD = RewardEntry(
    unit="0-10",
    meaning="is it clean and well formed: a judge for the embedded model's pictures",
    published="own",
    parts={
        "clip": Part(source="emoji64-clip", licence="MIT"),
        "head": Part(source=_EMBEDDED, licence="MIT"),
    },
    is_differentiable=True,
    build=build,
)
