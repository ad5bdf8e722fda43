"""Ways to spoil a picture by a known amount, which the judge of beauty learns to dislike."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

Damage = Callable[[torch.Tensor, torch.Tensor, float, torch.Generator], torch.Tensor]


def _normal(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator))


def blur(
    image: torch.Tensor, other: torch.Tensor, amount: float, generator: torch.Generator
) -> torch.Tensor:
    """Smooths the picture by a Gaussian of 0.5 to 4 pixels."""
    del other, generator
    deviation = 0.5 + 3.5 * amount
    places = torch.arange(-9, 10, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (places / deviation) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    padded = F.pad(image[:, None], (9, 9, 9, 9), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel), kernel.transpose(2, 3))[:, 0]


def noise(
    image: torch.Tensor, other: torch.Tensor, amount: float, generator: torch.Generator
) -> torch.Tensor:
    """Adds noise, fine or coarse, grey or coloured."""
    del other
    size = image.shape[-1] // (1 if _uniform(generator) < 0.6 else 2)
    channels = 3 if _uniform(generator) < 0.7 else 1
    grain = _normal((1, channels, size, size), generator)
    grain = F.interpolate(grain, image.shape[-2:], mode="bilinear")[0]
    return image + (0.04 + 0.4 * amount) * grain


def jpeg(
    image: torch.Tensor, other: torch.Tensor, amount: float, generator: torch.Generator
) -> torch.Tensor:
    """Passes the picture through a JPEG file of low quality."""
    del other, generator
    pixels = (255 * image.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=max(1, round(28 * (1 - amount))))
    array = np.asarray(Image.open(buffer), np.float32) / np.float32(255)
    return torch.from_numpy(array).permute(2, 0, 1)


def fade(
    image: torch.Tensor, other: torch.Tensor, amount: float, generator: torch.Generator
) -> torch.Tensor:
    """Takes contrast away, down to a flat colour."""
    del other, generator
    return torch.lerp(image, image.mean((1, 2), keepdim=True).expand_as(image), 0.3 + 0.7 * amount)


def cut(
    image: torch.Tensor, other: torch.Tensor, amount: float, generator: torch.Generator
) -> torch.Tensor:
    """Moves the picture out of its frame; its edge is continued, or another picture follows."""
    shift = round(image.shape[-1] * (0.25 + 0.5 * amount))
    if _uniform(generator) < 0.5:
        image, other = image.transpose(1, 2), other.transpose(1, 2)
    if _uniform(generator) < 0.5:
        image, other = image.flip(2), other.flip(2)
    moved = image.roll(-shift, 2)
    fills = other if _uniform(generator) < 0.3 else image[:, :, -1:].expand_as(image)
    moved[:, :, -shift:] = fills[:, :, -shift:]
    return moved


def mix(
    image: torch.Tensor, other: torch.Tensor, amount: float, generator: torch.Generator
) -> torch.Tensor:
    """Lays another picture over this one, everywhere or in soft patches."""
    weight = torch.full((1, *image.shape[1:]), 0.2 + 0.3 * amount)
    if _uniform(generator) < 0.7:
        coarse = _normal((1, 1, 4, 4), generator)
        soft = F.interpolate(coarse, image.shape[-2:], mode="bicubic")[0]
        weight = torch.sigmoid(6 * (soft - 0.8 * (1 - amount)))
    return torch.lerp(image, other, weight)


def warp(
    image: torch.Tensor, other: torch.Tensor, amount: float, generator: torch.Generator
) -> torch.Tensor:
    """Bends the picture out of shape, as an undertrained model does."""
    del other
    cells = 3 + int(5 * _uniform(generator))
    coarse = (0.04 + 0.16 * amount) * _normal((1, 2, cells, cells), generator)
    bend = F.interpolate(coarse, image.shape[-2:], mode="bicubic")[0].permute(1, 2, 0)
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, *image.shape], align_corners=False)
    return F.grid_sample(
        image[None], grid + bend[None], padding_mode="reflection", align_corners=False
    )[0]


DAMAGES: dict[str, Damage] = {
    "blur": blur,
    "noise": noise,
    "jpeg": jpeg,
    "fade": fade,
    "cut": cut,
    "mix": mix,
    "warp": warp,
}


def damage(
    images: torch.Tensor, generator: torch.Generator, clean_fraction: float = 0.3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spoils most of some pictures, each in one way.

    Args:
        images: (rows, 3, H, W) in [0, 1].
        generator: Decides how, and how much.
        clean_fraction: Of the pictures, left as they are.

    Returns:
        The pictures, and their quality (rows,): 1 for one left as it is, down to 0.
    """
    ways = list(DAMAGES.values())
    results, quality = [], []
    kinds = torch.randint(len(ways), (len(images),), generator=generator).tolist()
    draws = torch.rand(2, len(images), generator=generator).tolist()
    for row, (kind, amount, choice) in enumerate(zip(kinds, *draws, strict=True)):
        if choice < clean_fraction:
            results.append(images[row])
            quality.append(1.0)
        else:
            results.append(ways[kind](images[row], images[row - 1], amount, generator))
            quality.append(0.6 * (1 - amount) ** 0.7)
    return torch.stack(results).clamp(0, 1), torch.tensor(quality)
