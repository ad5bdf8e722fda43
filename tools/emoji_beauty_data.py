"""Training data of the judge of beauty: real pictures, damaged ones, and badly drawn ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm
from transformers import CLIPModel

from tools import emoji_data
from tools.emoji_bank import to_unit
from tools.emoji_clip import embed_images
from tools.emoji_judge import empty_picture, to_images
from tools.emoji_visibility import spoil


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A way to draw, and the quality its pictures count as."""

    steps: int
    guidance: float
    quality: float


# By the trained model. With few steps or no guidance its pictures are blurred or malformed.
DRAWINGS = (
    Drawing(steps=20, guidance=3.0, quality=0.85),
    Drawing(steps=8, guidance=1.0, quality=0.5),
    Drawing(steps=5, guidance=3.0, quality=0.4),
    Drawing(steps=3, guidance=1.0, quality=0.2),
)
# By models that were not finished, worst first.
UNFINISHED = (0.1, 0.25, 0.4)


def draw(
    pipeline: StableDiffusionPipeline, way: Drawing, prompts: list[str], seed: int
) -> torch.Tensor:
    """Returns one picture per prompt, (prompts, 3, H, W) in [0, 1]."""
    pictures = []
    for start in tqdm(range(0, len(prompts), 49), desc=f"draw, {way.steps} steps"):
        part = prompts[start : start + 49]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        pictures.append(
            pipeline(
                part,
                generator=generators,
                num_inference_steps=way.steps,
                guidance_scale=way.guidance,
                eta=1.0,
                output_type="pt",
            ).images.float()
        )
    return torch.cat(pictures)


def drawn_examples(
    pipeline: StableDiffusionPipeline, unfinished: Sequence[StableDiffusionPipeline], seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns pictures (rows, 3, H, W) that models drew, and the quality (rows,) they count as.

    Args:
        pipeline: The trained model.
        unfinished: The same after a part of its training, worst first.
        seed: Of the noise.
    """
    prompts = list(emoji_data.CAPTIONS)
    ways = [(pipeline, way) for way in DRAWINGS]
    for model, quality in zip(unfinished, UNFINISHED, strict=False):
        ways.append((model, Drawing(steps=10, guidance=3.0, quality=quality)))
    pictures, qualities = [], []
    for index, (model, way) in enumerate(ways):
        pictures.append(draw(model, way, prompts, seed + 1000 * index))
        qualities.append(torch.full((len(prompts),), way.quality))
    return torch.cat(pictures), torch.cat(qualities)


def noise_picture(rng: np.random.Generator) -> emoji_data.Picture:
    """Returns noise, grey or coloured, of 1 to 8 pixels and random contrast."""
    cell = int(rng.choice([1, 1, 2, 4, 8]))
    cells, channels = emoji_data.RESOLUTION // cell, int(rng.choice([1, 3]))
    noise = rng.normal(rng.uniform(0.2, 0.8), rng.uniform(0.05, 0.35), (cells, cells, channels))
    rows = np.broadcast_to(noise, (cells, cells, 3)).repeat(cell, axis=0).repeat(cell, axis=1)
    return np.asarray(255 * rows.clip(0, 1), np.uint8)


def made_examples(
    sprites: dict[str, Image.Image], variants: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns real and damaged pictures, and pictures without a subject, with their quality."""
    pictures, quality = spoil(emoji_data.render_bank(sprites, variants, seed), seed)
    rng = np.random.default_rng(seed)
    count = len(pictures) // 8
    empty = to_images(
        [empty_picture(rng) for _ in range(count)] + [noise_picture(rng) for _ in range(count)]
    )
    images = torch.cat([to_unit(pictures) / 2 + 0.5, empty])
    return images, torch.cat([quality, torch.zeros(len(empty))])


@torch.no_grad()
def embed(clip: CLIPModel, images: torch.Tensor, rows: int = 256) -> torch.Tensor:
    """Returns the image embeddings (rows, PROJECTION) of images in [0, 1]."""
    return torch.cat([embed_images(clip, part) for part in images.split(rows)])
