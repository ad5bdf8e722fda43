"""Where an adapter's matrices lie in one flat row, so that K adapters are one (K, P) block."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from ddpo.agents.lora import Factors, Stack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_ALIGNMENT = 16  # float32 entries: every matrix starts on a 64-byte boundary
_TENSOR_CORE = 8  # entries in half precision that a GPU's tensor cores take at a time


def _multiple(number: int, of: int) -> int:
    """The smallest that is not less."""
    return -(-number // of) * of


class _Place(NamedTuple):
    """Where one matrix lies: A (rank, in) or B (out, rank)."""

    start: int
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def aligned_size(self) -> int:
        return _multiple(self.size, _ALIGNMENT)


class FlatLayout:
    """Aligned places for A and B of every adapted layer; what lies between them is zero.

    Args:
        targets: the layers, by name.
        rank: of the adapters.
    """

    def __init__(self, targets: Mapping[str, nn.Linear], rank: int) -> None:
        self._places: dict[str, tuple[_Place, _Place]] = {}
        start = 0
        for name, base in targets.items():
            a = _Place(start, (rank, base.in_features))
            b = _Place(start + a.aligned_size, (base.out_features, rank))
            self._places[name] = a, b
            start = b.start + b.aligned_size
        self.size = start  # P

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The adapted layers, in the order given."""
        return tuple(self._places)

    def matrices(self, flat: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of one layer's A (..., rank, in) and B (..., out, rank) in a flat (..., P)."""
        a, b = (
            flat.narrow(-1, place.start, place.size).unflatten(-1, place.shape)
            for place in self._places[name]
        )
        return a, b

    def factors(self, block: torch.Tensor) -> Stack:
        """Every layer's factors in a block (K, P), as one split: backward fills it in one piece."""
        places = [place for pair in self._places.values() for place in pair]
        parts = block.split([place.aligned_size for place in places], dim=1)
        transposed = [
            part[:, : place.size].unflatten(1, place.shape).mT
            for part, place in zip(parts, places, strict=True)
        ]
        pairs = map(Factors, transposed[::2], transposed[1::2])
        return dict(zip(self._places, pairs, strict=True))

    def positions_in(self, wider: FlatLayout) -> torch.Tensor:
        """Where each entry (P,) goes in a layout of the same layers with a higher rank.

        The added ranks are zeros: they neither change an update nor get a gradient.
        """
        places = zip(self._places.values(), wider._places.values(), strict=True)
        return torch.cat(
            [_positions(*both) for pairs in places for both in zip(*pairs, strict=True)]
        )


def _positions(place: _Place, wider: _Place) -> torch.Tensor:
    """Where the entries of a matrix go in a larger one, and the zeros after them among its own."""
    rows, columns = place.shape
    kept = torch.arange(wider.size).view(wider.shape)[:rows, :columns].flatten()
    is_free = torch.ones(wider.aligned_size, dtype=torch.bool)
    is_free[kept] = False
    free = is_free.nonzero().flatten()[: place.aligned_size - place.size]
    return wider.start + torch.cat([kept, free])


def rank_of_products(rank: int, model: torch.Tensor) -> int:
    """The rank with which layers multiply: a GPU takes longer for one that is no multiple of eight.

    The products of an adapter of rank 4 in bfloat16, forward and backward, took an H100 1.6 times
    as long as those of rank 8.

    Args:
        rank: of the adapters.
        model: a weight of the layers.
    """
    is_padded = model.is_cuda and model.dtype.itemsize == 2
    return _multiple(rank, _TENSOR_CORE) if is_padded else rank
