"""The independent judge: a classifier of captions that no run is ever trained on."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from ddpo.assets import ASSETS
from tools import emoji_data
from tools.emoji_judge import Judge, load_judge

if TYPE_CHECKING:
    from collections.abc import Sequence


@torch.no_grad()
def subjects_found(images: torch.Tensor, prompts: Sequence[str]) -> float:
    """Share of pictures whose most likely caption is their prompt.

    Args:
        images: (n, 3, 32, 32) uint8.
        prompts: one for each, all of them captions of the embedded model.
    """
    captions = list(emoji_data.CAPTIONS)
    wanted = torch.tensor([captions.index(prompt) for prompt in prompts])
    answers = _judge()(images.float() / 255).argmax(dim=1)
    return (answers == wanted).float().mean().item()


@lru_cache
def _judge() -> Judge:
    return load_judge(ASSETS / "emoji-judge" / "judge.safetensors")
