"""How visible a subject is: pictures for the embedded CLIP, degraded by a known amount.

They are faded into their background, pixelated, roughened, covered, shrunk, or emptied.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from tools import emoji_data
from tools.emoji_bank import to_unit
from tools.emoji_damage import damage


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """Pictures with what is needed to degrade them; `rows` of everything."""

    pictures: torch.Tensor  # (rows, H, W, 3) bytes
    backgrounds: torch.Tensor  # (rows, H, W, 3) bytes, the same without a subject
    captions: torch.Tensor  # (rows,) index
    grounds: torch.Tensor  # (rows,) index
    sides: torch.Tensor  # (rows,) longer side of the subject as a fraction of the frame
    spoilt: torch.Tensor  # (rows, H, W, 3) bytes, well made pictures, most of them damaged
    quality: torch.Tensor  # (rows,) in [0, 1], of `spoilt`


def render_bank(sprites: dict[str, Image.Image], variants: int, seed: int) -> Bank:
    """Returns `variants` pictures of each caption, a third of them with subjects of any size."""
    pictures, backgrounds, captions, grounds, sides = [], [], [], [], []
    for index, sprite in enumerate(tqdm(sprites.values(), desc="render")):
        rng = np.random.default_rng([seed, index])
        for _ in range(variants):
            smallest = 0.15 if rng.random() < 0.35 else 0.5
            placement = emoji_data.random_placement(rng, smallest)
            ground = emoji_data.random_ground(rng)
            background = emoji_data.draw_background(rng, ground=ground)
            pictures.append(emoji_data.render(sprite, placement, background))
            backgrounds.append((255 * background.clip(0, 1)).astype(np.uint8))
            captions.append(index)
            grounds.append(ground)
            sides.append(placement.side / emoji_data.RESOLUTION)
    spoilt, quality = spoil(emoji_data.render_bank(sprites, variants, seed + 1), seed)
    return Bank(
        pictures=torch.from_numpy(np.stack(pictures)),
        backgrounds=torch.from_numpy(np.stack(backgrounds)),
        captions=torch.tensor(captions),
        grounds=torch.tensor(grounds),
        sides=torch.tensor(sides),
        spoilt=spoilt,
        quality=quality,
    )


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Returns images (rows, 3, H, W) in [0, 1] as bytes (rows, H, W, 3)."""
    return (255 * images.clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1)


def spoil(examples: Iterable[emoji_data.Example], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the pictures of examples in random order, most of them damaged, and their quality."""
    pictures = torch.from_numpy(np.stack([example.picture for example in examples]))
    generator = torch.Generator().manual_seed(seed)
    pictures = pictures[torch.randperm(len(pictures), generator=generator)]
    parts = [damage(to_unit(part) / 2 + 0.5, generator) for part in pictures.split(64)]
    spoilt = torch.cat([to_bytes(images) for images, _ in parts])
    return spoilt, torch.cat([quality for _, quality in parts])


def side_visibility(sides: torch.Tensor) -> torch.Tensor:
    """Returns how visible a subject of a given side counts as: 1 from 0.55 of the frame on."""
    return ((sides - 0.1) / 0.45).clamp(0, 1) ** 0.7


def _fade(image: torch.Tensor, background: torch.Tensor, amount: float) -> torch.Tensor:
    return torch.lerp(image, background, amount)


def _pixelate(image: torch.Tensor, amount: float, mode: str) -> torch.Tensor:
    size = image.shape[-1]
    cells = max(2, round(size * 0.5 ** (4 * amount)))
    small = F.interpolate(image[None], (cells, cells), mode="area")
    return F.interpolate(small, (size, size), mode=mode)[0]


def _cover(image: torch.Tensor, patch: torch.Tensor, amount: float, side: int) -> torch.Tensor:
    size = image.shape[-1]
    covered = round(size * amount)
    area = torch.zeros(size, size, dtype=torch.bool)
    area[slice(0, covered) if side % 2 else slice(size - covered, size)] = True
    return torch.where(area if side < 2 else area.T, patch, image)


def degrade(
    images: torch.Tensor, backgrounds: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Degrades most of some images, each in one way, and says how visible each subject still is.

    Args:
        images: (rows, 3, H, W) in [0, 1].
        backgrounds: The same without a subject.
        generator: Decides how, and how much.

    Returns:
        The degraded images, and their visibility (rows,) in [0, 1].
    """
    rows = len(images)
    visibility = torch.ones(rows)
    images = images.clone()
    kinds = torch.randint(8, (rows,), generator=generator).tolist()  # 0 and 1 leave it as it is
    sides = torch.randint(4, (rows,), generator=generator).tolist()
    colours = torch.rand(rows, 3, 1, 1, generator=generator)
    amounts, choices = torch.rand(2, rows, generator=generator).tolist()
    for row, (kind, amount, choice) in enumerate(zip(kinds, amounts, choices, strict=True)):
        image = images[row]
        if kind in {2, 3}:
            images[row] = _fade(image, backgrounds[row], amount)
            visibility[row] = min(1.0, ((1 - amount) / 0.7) ** 0.8)
        elif kind == 4:
            images[row] = _pixelate(image, amount, "nearest" if choice < 0.3 else "bilinear")
            visibility[row] = 1 - (amount - 0.15) / 0.5
        elif kind == 5:
            noise = torch.randn(image.shape, generator=generator)
            images[row] = image + 0.7 * amount * noise
            visibility[row] = 1.1 - amount
        elif kind == 6:
            patch = backgrounds[row - 1] if choice < 0.5 else colours[row].expand_as(image)
            images[row] = _cover(image, patch, amount, sides[row])
            visibility[row] = 1.15 - amount
        elif kind == 7 and choice < 0.4:
            images[row] = backgrounds[row]
            visibility[row] = 0.0
    brightness = 0.85 + 0.3 * torch.rand(rows, 1, 1, 1, generator=generator)
    return (images * brightness).clamp(0, 1), visibility.clamp(0, 1)
