"""Numbers about pictures that need no model: sharpness, and the colour of the ground."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from tools.emoji_bank import to_unit
from tools.emoji_data import render_bank
from tools.emoji_names import GROUNDS
from tools.emoji_vae import laplacian

EDGE = 3  # pixels of the frame that count as ground


def sharpness(images: torch.Tensor) -> float:
    """Returns the mean variance of the Laplacian of the grey values of images in [0, 1]."""
    return float((255 * laplacian(images)).flatten(1).var(1).mean())


def training_sharpness(sprites: dict[str, Image.Image], variants: int = 8, seed: int = 5) -> float:
    """Returns the sharpness of training pictures."""
    pictures = np.stack([row.picture for row in render_bank(sprites, variants, seed)])
    return sharpness(to_unit(torch.from_numpy(pictures)) / 2 + 0.5)


def ground_colours(images: torch.Tensor) -> torch.Tensor:
    """Returns the index of the named ground nearest to the frame of each image (rows,)."""
    frame = torch.ones(images.shape[-2:], dtype=torch.bool)
    frame[EDGE:-EDGE, EDGE:-EDGE] = False
    colours = images[:, :, frame].median(dim=2).values
    return torch.cdist(colours, torch.tensor(list(GROUNDS.values()))).argmin(1)


def jpeg_kilobytes(image: torch.Tensor) -> float:
    """Returns the size of an image (3, H, W) in [0, 1] as JPEG of quality 95, in kB."""
    buffer = io.BytesIO()
    array = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(array).save(buffer, "JPEG", quality=95)
    return len(buffer.getvalue()) / 1000
