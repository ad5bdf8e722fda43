"""CLIP models (Radford et al. 2021) for rewards: loaded once, each picture embedded once."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ddpo.assets import resolve_model
from ddpo.devices import DTYPES, at_least_float32
from ddpo.rewards.image_batch import with_gradient_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import CLIPImageProcessorPil, CLIPModel

    from ddpo.rewards.image_batch import ImageBatch

_MAX_PROMPTS = 4096  # text embeddings kept


def clip_pixels(batch: ImageBatch, processor: CLIPImageProcessorPil) -> torch.Tensor:
    """CLIP's input for a batch: resized, cropped and normalised, as Pillow and OpenAI's code do it.

    The resize is always Pillow's bicubic on 8-bit pictures, on any device: other implementations do
    not round between its two passes. If the batch keeps a graph, the gradient comes from torch's
    antialiased bicubic, the same filter without rounding.

    Returns:
        (rows, 3, h, w) float32 where the batch's rewards run.
    """
    edge = processor.size["shortest_edge"]
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)

    def compute() -> torch.Tensor:
        arrays = np.stack([np.asarray(_fit(picture, edge, height, width)) for picture in batch.pil])
        device = batch.device
        pixels = torch.from_numpy(arrays).to(device).permute(0, 3, 1, 2).float().div(255)
        if batch.keep_graph:
            smooth = _fit_smoothly(batch.images, edge, height, width)
            pixels = with_gradient_of(smooth, pixels.to(smooth.dtype))
        centre = torch.tensor(mean, device=device).view(3, 1, 1)
        return (pixels - centre) / torch.tensor(std, device=device).view(3, 1, 1)

    return batch.shared(("clip pixels", edge, height, width, mean, std), compute)


def _fit(picture: Image.Image, edge: int, height: int, width: int) -> Image.Image:
    """Resize the shortest edge to `edge` pixels, then crop the centre of height x width."""
    size = _resized(picture.size, edge)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _fit_smoothly(images: torch.Tensor, edge: int, height: int, width: int) -> torch.Tensor:
    """`_fit` without rounding, for images (rows, 3, H, W) in [0, 1], so that it has a gradient."""
    size = _resized((images.shape[3], images.shape[2]), edge)
    if size != (images.shape[3], images.shape[2]):
        images = F.interpolate(images, size[::-1], mode="bicubic", antialias=True)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    # If the centre is larger than the picture, black fills the rest, as in Pillow's crop.
    right, bottom = size[0] - width - left, size[1] - height - top
    return F.pad(images, (-left, -right, -top, -bottom))


def _resized(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """(width, height) with the shortest edge at `edge` pixels."""
    width, height = size
    other = int(edge * max(size) / min(size))
    return (edge, other) if width <= height else (other, edge)


class ClipTower:
    """A frozen CLIPModel with its tokenizer and picture processor.

    Args:
        model: the weights.
        processor: folder or hub id of tokenizer and picture processor.
        device: where it runs; the text half moves there with the first prompt.
    """

    def __init__(self, model: CLIPModel, processor: str, device: torch.device) -> None:
        from transformers import CLIPImageProcessorPil, CLIPTokenizer  # noqa: PLC0415 - see `ddpo.rewards`

        self.model = model.requires_grad_(False).eval()
        for part in (model.vision_model, model.visual_projection):
            part.to(device)
        self.processor = CLIPImageProcessorPil.from_pretrained(processor)
        self.tokenizer = CLIPTokenizer.from_pretrained(processor)
        self.device = device
        self._text_lock = threading.Lock()
        self._embed_text = lru_cache(maxsize=_MAX_PROMPTS)(self._embed_one)

    @property
    def temperature(self) -> float:
        """The factor that turns cosines into CLIP's logits."""
        return float(self.model.logit_scale.float().exp())

    def embed_images(self, batch: ImageBatch) -> torch.Tensor:
        """Embeddings (rows, D) of length 1, float32 or wider; computed once per batch."""

        def compute() -> torch.Tensor:
            pixels = clip_pixels(batch, self.processor).to(self.device, self.model.dtype)
            with torch.set_grad_enabled(batch.keep_graph):
                embeds = self.model.get_image_features(pixel_values=pixels).pooler_output
                return F.normalize(at_least_float32(embeds), dim=-1)

        return batch.shared(("clip embedding", id(self)), compute)

    @torch.no_grad()
    def embed_texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings (rows, D) of length 1, float32; each distinct prompt is embedded once."""
        with self._text_lock:
            return torch.cat([self._embed_text(prompt) for prompt in prompts]).to(self.device)

    def cosine(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:
        """Cosine (rows,) of each picture with its prompt."""
        return (self.embed_images(batch) * self.embed_texts(prompts)).sum(dim=-1)

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """The prompts with more tokens than the text half reads."""
        tokens = [self.tokenizer(prompt, verbose=False).input_ids for prompt in prompts]
        return [p for p, each in zip(prompts, tokens, strict=True) if len(each) > self._length]

    @property
    def _length(self) -> int:
        length: int = self.model.config.text_config.max_position_embeddings
        return length

    def _embed_one(self, prompt: str) -> torch.Tensor:
        """Embedding (1, D) on the CPU: scorers that share this model use different CUDA streams."""
        for part in (self.model.text_model, self.model.text_projection):
            part.to(self.device)
        tokens = self.tokenizer(
            prompt, truncation=True, max_length=self._length, return_tensors="pt"
        )
        embeds = self.model.get_text_features(**tokens.to(self.device)).pooler_output
        return F.normalize(at_least_float32(embeds), dim=-1).cpu()


_towers: WeakValueDictionary[tuple[str, str, str, str], ClipTower] = WeakValueDictionary()


def load_clip(
    source: str, device: torch.device, dtype: str, processor: str | None = None
) -> ClipTower:
    """A CLIP model; rewards that name the same one share it.

    Args:
        source: folder, hub id, or "emoji-clip"; its weights are safetensors.
        device: where it runs.
        dtype: of its weights and activations.
        processor: folder or hub id of tokenizer and picture processor; by default `source`.

    Raises:
        OSError, ValueError: if there is no such model.
    """
    key = (source, processor or source, str(device), dtype)
    tower = _towers.get(key)
    if tower is None:
        from transformers import CLIPModel  # noqa: PLC0415 - see `ddpo.rewards`

        path = resolve_model(source)
        model = CLIPModel.from_pretrained(path, use_safetensors=True, dtype=DTYPES[dtype])
        tower = ClipTower(model, resolve_model(processor or source), device)
        _towers[key] = tower
    return tower
