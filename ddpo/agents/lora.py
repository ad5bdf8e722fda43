"""LoRA for K agents on one UNet (Hu et al. 2022, eq. 3): one layer, and all layers of a UNet.

    y = W x + (alpha / rank) B_k A_k x    for the rows of agent k

The frozen product W x sees the rows of all agents as one large batch. The low-rank product is
batched over agents, so that every row meets its own agent's matrices.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from config.settings.errors import UserError
from ddpo.agents.layout import FlatLayout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from config.base import AdapterSettings


class StackedLoRALinear(nn.Module):
    """A linear layer with K adapters: y = W x + (alpha / rank) B_k A_k x for rows of agent k.

    Args:
        base: the frozen layer, W and its bias.
        scale: alpha / rank.

    Attributes:
        matrices: A (K, rank, in) and B (K, out, rank) of the agents in a pass, in the dtype of x.
        is_adapted: False gives the base layer's output.
    """

    matrices: tuple[torch.Tensor, torch.Tensor]

    def __init__(self, base: nn.Linear, scale: float) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.is_adapted = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out); rows are agent-major, the same number for each agent."""
        out: torch.Tensor = self.base(x)
        if not self.is_adapted:
            return out
        a, b = self.matrices
        rows = x.reshape(len(a), -1, x.shape[-1])
        update = rows @ a.mT @ b.mT
        return out + self.scale * update.view(out.shape)


class AdaptedLayers:
    """The adapted layers of a UNet, wrapped in place.

    Args:
        unet: whose target layers are wrapped.
        adapter: rank, alpha, target layers.

    Attributes:
        by_name: the wrapped layers, in the UNet's order.
        layout: the places of their matrices in an adapter's flat row.
        dtype: of the model; the matrices are used in it.

    Raises:
        UserError: if no linear layer of the UNet matches one of the target names.
    """

    def __init__(self, unet: nn.Module, adapter: AdapterSettings) -> None:
        self.dtype = next(unet.parameters()).dtype
        targets = target_layers(unet, adapter.target_modules)
        self.layout = FlatLayout(targets, adapter.rank)
        scale = adapter.alpha / adapter.rank
        self.by_name = {name: StackedLoRALinear(base, scale) for name, base in targets.items()}
        for name, layer in self.by_name.items():
            unet.set_submodule(name, layer)

    def show(self, block: torch.Tensor, num_agents: int) -> None:
        """Give every layer its matrices, as views of the first adapters of a block (K, P)."""
        all_matrices = self.split(block[:num_agents].to(self.dtype))
        for layer, matrices in zip(self.by_name.values(), all_matrices, strict=True):
            layer.matrices = matrices

    def split(self, block: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Every layer's A and B in adapters (K, P)."""
        return self.layout.split(block)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the layers compute what the base model computes."""
        for layer in self.by_name.values():
            layer.is_adapted = False
        try:
            yield
        finally:
            for layer in self.by_name.values():
                layer.is_adapted = True


def target_layers(unet: nn.Module, suffixes: tuple[str, ...]) -> dict[str, nn.Linear]:
    """Name -> linear layer, for every layer whose name ends in one of the suffixes.

    Raises:
        UserError: naming the suffixes that fit no linear layer.
    """

    def fits(name: str, suffix: str) -> bool:
        return name == suffix or name.endswith("." + suffix)

    linear = {name: each for name, each in unet.named_modules() if isinstance(each, nn.Linear)}
    dead = [suffix for suffix in suffixes if not any(fits(name, suffix) for name in linear)]
    if dead or not suffixes:
        raise UserError(
            f"adapter.target_modules={suffixes}: each must end the name of a linear layer of the "
            f"UNet, but none ends in {' or '.join(map(repr, dead)) or 'one of an empty list'}; "
            "attention projections are 'to_q', 'to_k', 'to_v', 'to_out.0'"
        )
    return {
        name: layer
        for name, layer in linear.items()
        if any(fits(name, suffix) for suffix in suffixes)
    }
