"""Does the image show its prompt? Cosine similarity of CLIP embeddings (Radford et al. 2021)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from ddpo.assets import resolve_model

if TYPE_CHECKING:
    from collections.abc import Sequence


def preprocess(images: torch.Tensor, processor: CLIPImageProcessor) -> torch.Tensor:
    """CLIP's preprocessing of images (rows, 3, H, W) in [0, 1]: resize, crop, normalise."""
    size, crop = processor.size["shortest_edge"], processor.crop_size
    height, width = images.shape[-2:]
    if min(height, width) != size:
        ratio = size / min(height, width)
        target = (round(height * ratio), round(width * ratio))
        images = F.interpolate(images, target, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (images.shape[-2] - crop["height"]) // 2, (images.shape[-1] - crop["width"]) // 2
    images = images[..., top : top + crop["height"], left : left + crop["width"]]
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    return (images - mean) / std


class ClipAlignment:
    """Cosine similarity in [-1, 1] between image and prompt under a CLIPModel.

    Args:
        model: folder, hub id, or "emoji-clip", which ships with this project.
        device: where the model runs, in float32.
    """

    def __init__(self, model: str, device: torch.device) -> None:
        path = resolve_model(model)
        self.clip = CLIPModel.from_pretrained(path, use_safetensors=True, dtype=torch.float32)
        self.clip.to(device).requires_grad_(False).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(path)
        self.processor = CLIPImageProcessor.from_pretrained(path)
        self.device = device
        self._text = lru_cache(maxsize=4096)(self._embed_text)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores (rows,) of images (rows, 3, H, W) in [0, 1], one prompt per row."""
        pixels = preprocess(images.to(self.device, torch.float32), self.processor)
        image = F.normalize(self.clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        text = torch.cat([self._text(prompt) for prompt in prompts])
        return (image * text).sum(dim=-1).cpu()

    def _embed_text(self, prompt: str) -> torch.Tensor:
        tokens = self.tokenizer(prompt, truncation=True, return_tensors="pt").to(self.device)
        return F.normalize(self.clip.get_text_features(**tokens).pooler_output, dim=-1)
