"""File size as a reward: DDPO's compressibility and incompressibility (Black et al. 2024, 5.1)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

QUALITY = 95
_BYTES_PER_KB = 1000


class JpegSize:
    """Signed JPEG file size at quality 95, in kB of 1000 bytes.

    Args:
        sign: -1 rewards small files (values are negative), +1 rewards large ones.
    """

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:  # noqa: ARG002
        """Scores (rows,) of images (rows, 3, H, W) in [0, 1]; the prompts do not matter."""
        pixels = images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        sizes = [jpeg_kilobytes(Image.fromarray(array)) for array in pixels]
        return self.sign * torch.tensor(sizes, dtype=torch.float32)


def jpeg_kilobytes(image: Image.Image) -> float:
    """Size of `image` as a JPEG file of quality 95, in kB."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY)
    return len(buffer.getvalue()) / _BYTES_PER_KB
