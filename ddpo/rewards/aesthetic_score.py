"""LAION's improved aesthetic predictor, the aesthetic reward of DDPO (Black et al. 2024, 5.2).

Weights: CLIP ViT-L/14 by OpenAI (MIT) and the "sac+logos+ava1-l14-linearMSE" head by Christoph
Schuhmann (Apache 2.0), which TRL's DDPO example hosts as `trl-lib/ddpo-aesthetic-predictor`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPModel

from config.errors import UserError
from ddpo.rewards.clip_alignment import preprocess

if TYPE_CHECKING:
    from collections.abc import Sequence

_HUB_FILE = "aesthetic-model.pth"


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
    """Load the head from a local file (.pth, .safetensors) or a hub repository.

    A .pth file is read with `weights_only=True`: no code in it runs.

    Raises:
        UserError: if the file holds other tensors than the head's.
    """
    path = Path(source)
    if not path.is_file():
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 - a local file needs no hub

        path = Path(hf_hub_download(source, _HUB_FILE))
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, weights_only=True, map_location="cpu")
    state = {name.removeprefix("layers."): tensor.float() for name, tensor in state.items()}
    head = make_head(state["0.weight"].shape[1] if "0.weight" in state else 768)
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"rewards.aesthetic_head={source!r} is not this predictor: {error}"
        ) from error
    return head


class AestheticScore:
    """Aesthetic score of images, about 1 to 10.

    Args:
        clip: folder or hub id of the CLIP whose image embedding the head reads.
        head: local file or hub id of the head.
        device: where both run, in float32.
    """

    def __init__(self, clip: str, head: str, device: torch.device) -> None:
        self.clip = CLIPModel.from_pretrained(clip, use_safetensors=True, dtype=torch.float32)
        del self.clip.text_model
        self.clip.to(device).requires_grad_(False).eval()
        self.processor = CLIPImageProcessor.from_pretrained(clip)
        self.head = load_head(head).to(device).requires_grad_(False).eval()
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:  # noqa: ARG002
        """Scores (rows,) of images (rows, 3, H, W) in [0, 1]; the prompts do not matter."""
        pixels = images.to(self.device, torch.float32).mul(255).round().div(255)
        features = self.clip.get_image_features(pixel_values=preprocess(pixels, self.processor))
        scores: torch.Tensor = self.head(F.normalize(features.pooler_output, dim=-1)).squeeze(-1)
        return scores.cpu()
