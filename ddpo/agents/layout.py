"""The flat layout of an adapter: all matrices in one row, so K adapters are one (K, P) block.

    row = [A_1, B_1, A_2, B_2, ...]    for the adapted layers 1, 2, ..., each matrix row by row

Clipping, the optimiser step, snapshots and sums over processes then touch one tensor instead of two
for every layer. The layers use views of the block.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

_ALIGNMENT = 16  # float32 entries: every matrix starts on a 64-byte boundary


class _Place(NamedTuple):
    """The place of one matrix in the row: A (rank, in) or B (out, rank)."""

    start: int
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def aligned_size(self) -> int:
        return -(-self.size // _ALIGNMENT) * _ALIGNMENT


class FlatLayout:
    """Aligned places for A and B of every adapted layer; the gaps between them are zero.

    Args:
        targets: the layers, by name.
        rank: of the adapters.
    """

    def __init__(self, targets: Mapping[str, nn.Linear], rank: int) -> None:
        self.rank = rank
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

    def split(self, block: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Every layer's A (K, rank, in) and B (K, out, rank) in a block (K, P).

        Equal to `matrices` of each layer, but made by one split: its backward pass fills the whole
        block in one operation.
        """
        places = [place for pair in self._places.values() for place in pair]
        parts = block.split([place.aligned_size for place in places], dim=1)
        matrices = [
            part[:, : place.size].unflatten(1, place.shape)
            for part, place in zip(parts, places, strict=True)
        ]
        return list(zip(matrices[::2], matrices[1::2], strict=True))
