"""Pictures that nobody asked for: noise, flat colours, and damaged versions of given pictures."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from ddpo.rewards.image_batch import ImageBatch

if TYPE_CHECKING:
    from collections.abc import Callable

_COLOURS = ((0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0))
_SATURATION = 4.0  # times the distance of each channel from the pixel's mean
_SHARPENING = 6.0  # times the detail added
_TILES = 3  # in height and width
_JPEG_QUALITY = 5


def noise(images: torch.Tensor) -> torch.Tensor:
    """Every pixel drawn evenly, the same at every call."""
    return torch.rand(images.shape, generator=torch.Generator().manual_seed(0))


def flat(images: torch.Tensor) -> torch.Tensor:
    """One colour per picture: black, white, grey, red, green, blue, yellow, black, ..."""
    colours = torch.tensor(_COLOURS)[torch.arange(len(images)) % len(_COLOURS)]
    return colours[:, :, None, None].expand_as(images).clone()


def saturated(images: torch.Tensor) -> torch.Tensor:
    """Colours pushed to their ends."""
    grey = images.mean(dim=1, keepdim=True)
    return (grey + _SATURATION * (images - grey)).clamp(0, 1)


def tiled(images: torch.Tensor) -> torch.Tensor:
    """The picture reduced, and repeated side by side."""
    height, width = images.shape[2:]
    size = (-(-height // _TILES), -(-width // _TILES))
    small = functional.interpolate(images, size, mode="bilinear", antialias=True)
    return small.repeat(1, 1, _TILES, _TILES)[:, :, :height, :width].clamp(0, 1)


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Each pixel the mean of the three by three around it."""
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return functional.avg_pool2d(padded, 3, stride=1)


def detail(images: torch.Tensor) -> torch.Tensor:
    """(n,) mean square of what blurring takes away."""
    return (images - blurred(images)).square().mean(dim=(1, 2, 3))


def sharpened(images: torch.Tensor) -> torch.Tensor:
    """Detail exaggerated: an unsharp mask far beyond taste."""
    return (images + _SHARPENING * (images - blurred(images))).clamp(0, 1)


def jpeg(images: torch.Tensor) -> torch.Tensor:
    """Saved once as JPEG of the lowest quality."""
    out = []
    for picture in ImageBatch(images).pil:
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=_JPEG_QUALITY)
        out.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(out).float().div(255)


DAMAGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    # name -> function of (n, 3, H, W) in [0, 1] on the CPU
    "noise": noise,
    "flat colours": flat,
    "saturated": saturated,
    "tiled": tiled,
    "over-sharpened": sharpened,
    "JPEG damage": jpeg,
}
