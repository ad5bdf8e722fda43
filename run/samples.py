"""Sample pictures on disk: the same prompts and seeds for every policy, one file per policy.

`samples/<set>/<policy>.webp` holds the first pictures that a policy drew of a set, as a grid.
`report` pictures show the published front and its blends, `selection` pictures every policy of
the search as it was found.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ddpo.files import write_atomic

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_LOSSLESS_SIZE = 128  # pixels; larger pictures are stored with `_QUALITY`
_QUALITY = 90


def grid_shape(num_images: int) -> tuple[int, int]:
    """(rows, columns) of a grid, as square as it gets, no row empty.

    Example:
        >>> grid_shape(8)
        (3, 3)
    """
    columns = math.ceil(math.sqrt(num_images))
    return math.ceil(num_images / columns), columns


def make_grid(images: torch.Tensor) -> NDArray[np.uint8]:
    """Pictures (n, 3, H, W) uint8 side by side as one (rows H, columns W, 3); the rest is white."""
    num, channels, height, width = images.shape
    rows, columns = grid_shape(num)
    cells = np.full((rows * columns, height, width, channels), 255, dtype=np.uint8)
    cells[:num] = images.permute(0, 2, 3, 1).numpy()
    grid = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(rows * height, columns * width, channels))


def encode(image: Image.Image, size: int) -> bytes:
    """An image as WebP, exact if `size`, the longer side of its pictures, is at most 128 pixels."""
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=size <= _LOSSLESS_SIZE, quality=_QUALITY, method=4)
    return file.getvalue()


def sample_path(run: Path, which: str, policy: str) -> Path:
    """Where the pictures of a policy lie.

    Args:
        run: the run directory.
        which: "report" or "selection".
        policy: its id.
    """
    return run / "samples" / which / f"{policy}.webp"


def write_samples(run: Path, which: str, policy: str, images: torch.Tensor) -> None:
    """Store pictures of a policy, atomically.

    Args:
        run: the run directory.
        which: "report" or "selection".
        policy: its id.
        images: (n, 3, H, W) uint8; with n = 0 nothing is written.
    """
    if not len(images):
        return
    data = encode(Image.fromarray(make_grid(images)), max(images.shape[2:]))
    write_atomic(sample_path(run, which, policy), data)


def read_samples(run: Path, which: str, policy: str, num_images: int) -> list[Image.Image]:
    """The pictures of a policy, in the order of the prompts; none if it has no file.

    Args:
        run: the run directory.
        which: "report" or "selection".
        policy: its id.
        num_images: how many were stored.
    """
    path = sample_path(run, which, policy)
    if not num_images or not path.is_file():
        return []
    with Image.open(path) as file:
        grid = file.convert("RGB")
    rows, columns = grid_shape(num_images)
    width, height = grid.width // columns, grid.height // rows
    corners = [(i % columns * width, i // columns * height) for i in range(num_images)]
    return [grid.crop((x, y, x + width, y + height)) for x, y in corners]
