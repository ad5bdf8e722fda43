"""The number of bits of a JPEG file, as a differentiable function of its picture.

    bits = sum over all DCT coefficients c, divided by the quantisation tables, of log2(1 + |c|)

A baseline JPEG codes each quantised DCT coefficient c by its size category, about log2(1 + |c|)
bits, and by as many bits for its value (ITU-T T.81, F.1.2). The sum follows the file size up to a
scale and an offset, which runs measure on the base model's pictures. Coefficients are not rounded,
so that there is a gradient.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from PIL import Image
from torch.nn import functional as F

from ddpo.devices import at_least_float32
from ddpo.rewards.image_batch import in_memory

_BLOCK = 8
# JFIF 1.02, page 3: RGB to luma and the two colour differences.
_TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)


def jpeg_bits(images: torch.Tensor) -> torch.Tensor:
    """Sum over all DCT coefficients of log2(1 + |c|), colour at half the resolution (4:2:0).

    Args:
        images: (rows, 3, H, W) in [0, 1], of any size; edges are repeated to whole blocks.

    Returns:
        (rows,), float32 or wider.
    """
    # RGB to luma and colour differences.
    pixels = 255 * at_least_float32(images)
    to_ycbcr = pixels.new_tensor(_TO_YCBCR)
    luma, *colours = torch.einsum("nchw,dc->ndhw", pixels, to_ycbcr).split(1, dim=1)
    # Bits of each plane; colour planes at half the resolution.
    tables = [pixels.new_tensor(table).view(_BLOCK, _BLOCK) for table in quantisation_tables()]
    bits = _plane_bits(_to_whole_blocks(luma, 2 * _BLOCK) - 128, tables[0])
    for colour in colours:
        halved = F.avg_pool2d(_to_whole_blocks(colour, 2 * _BLOCK), 2)
        bits = bits + _plane_bits(halved, tables[1])
    return bits


def _plane_bits(plane: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Bits (rows,) of planes (rows, 1, h, w), whose edges are multiples of 8."""
    rows, _, height, width = plane.shape
    blocks = plane.view(rows, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    dct = dct_matrix().to(plane)
    coefficients = torch.einsum("ui,nyixj,vj->nyxuv", dct, blocks, dct) / table
    return (1 + coefficients.abs()).log2().flatten(1).sum(dim=1)


def _to_whole_blocks(plane: torch.Tensor, edge: int) -> torch.Tensor:
    height, width = plane.shape[-2:]
    return F.pad(plane, (0, -width % edge, 0, -height % edge), mode="replicate")


@lru_cache(maxsize=1)
def dct_matrix() -> torch.Tensor:
    """(8, 8) float64 orthonormal DCT-II: row u holds the u-th cosine (T.81, A.3.3)."""
    place = torch.arange(_BLOCK, dtype=torch.float64)
    matrix = torch.cos((2 * place + 1) * place[:, None] * math.pi / (2 * _BLOCK)) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


@lru_cache(maxsize=1)
def quantisation_tables() -> tuple[list[int], list[int]]:
    """The tables of luma and colour, row by row, as Pillow writes them at the rewards' quality."""
    with Image.open(in_memory(Image.new("RGB", (_BLOCK, _BLOCK)), "jpeg")) as picture:
        tables: dict[int, list[int]] = picture.quantization
    return tables[0], tables[1]
