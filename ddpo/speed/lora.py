"""The stacked LoRA layer with fewer and wider products.

Where an agent has many rows, W + s B A is summed first, so that one product serves both terms:

    x W^T + s (x A^T) B^T  =  x (W + s B A)^T.

Elsewhere both terms are computed, and the second is added in place. The backward pass is written
out, because autograd's multiplies tall matrices by `rank` columns, for which processors have no
fast kernel. With h = x A^T and g = dL/dy:

    dL/dB = s g^T h,   dL/dA = s (B^T g^T) x,   dL/dx = g W + s (g B) A.

Without gradient the matrices that layers see are kept until the adapters change. In half precision
on a GPU they are padded with zeros to a rank that its tensor cores take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ddpo.agents.layout import FlatLayout
from ddpo.agents.lora import AdaptedLayers, StackedLoRALinear
from ddpo.speed.products import is_for_onednn, linear

if TYPE_CHECKING:
    from torch import nn

_TENSOR_CORE = 8  # entries in half precision that a GPU's tensor cores take at a time


class FastLoRALinear(StackedLoRALinear):
    """The same up to rounding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See `StackedLoRALinear`."""
        out: torch.Tensor
        if not self.is_adapted:
            out = self.base(x)
        elif torch.is_grad_enabled():
            out = _Adapted.apply(x, *self.matrices, self.base, self.scale)  # type: ignore[no-untyped-call]
        else:
            out, _ = _adapted(x, *self.matrices, self.base, self.scale)
        return out


def _adapted(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, base: nn.Linear, scale: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The adapted layer's output (..., out), and x A^T (K, rows, rank) if that was needed."""
    rows = _by_agent(x, a)
    if merges(rows, base.weight):
        out = torch.bmm(rows, _merged(a, b, base, scale).mT)
        if base.bias is not None:
            out += base.bias
        return out.view(*x.shape[:-1], -1), None
    out = linear(x, base.weight, base.bias)
    hidden = torch.bmm(rows, a.mT)
    if x.device.type == "cpu":
        # Scaled, then added, as peft does: a fused baddbmm rounds differently on some processors.
        update = torch.bmm(hidden, b.mT)
        if scale != 1:
            update *= scale
        out.add_(update.view(out.shape))
    else:
        out.view(len(b), -1, out.shape[-1]).baddbmm_(hidden, b.mT, alpha=scale)
    return out, hidden


def merges(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the rows of an agent (K, rows, in) are multiplied by the sum of both weights.

    Where that is less work than the low-rank product, and in float32 at least: a sum rounded to
    half precision, or to a GPU's tf32, would lose small updates.
    """
    is_exact = x.device.type == "cpu" and x.dtype.itemsize >= torch.float32.itemsize
    is_less = x.shape[1] * sum(weight.shape) >= weight.numel()
    return is_exact and is_less and not is_for_onednn(x, weight)


def _merged(a: torch.Tensor, b: torch.Tensor, base: nn.Linear, scale: float) -> torch.Tensor:
    """Every agent's W + scale * B A: (K, out, in), made for this product and not kept."""
    return torch.baddbmm(base.weight.expand(len(b), -1, -1), b, a, alpha=scale)


def _by_agent(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Agent-major x (..., width) as (K, rows, width)."""
    return x.reshape(len(matrix), -1, x.shape[-1])


class _Adapted(torch.autograd.Function):
    """`_adapted`, differentiable with respect to x, A and B; gradients add in place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        base: nn.Linear,
        scale: float,
    ) -> torch.Tensor:
        out, hidden = _adapted(x, a, b, base, scale)
        ctx.save_for_backward(x, hidden, a, b)
        ctx.base, ctx.scale = base, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, hidden, a, b = ctx.saved_tensors
        rows, update = _by_agent(x, a), _by_agent(gradient, b)
        is_merged = hidden is None
        if is_merged:
            hidden = torch.bmm(rows, a.mT)
        grad_b = torch.bmm(hidden.mT, update).mT
        grad_hidden = torch.bmm(b.mT, update.mT)  # (K, rank, rows)
        if ctx.scale != 1:
            grad_b *= ctx.scale
            grad_hidden *= ctx.scale
        grad_a = torch.bmm(grad_hidden, rows)
        grad_x = None
        if ctx.needs_input_grad[0] and is_merged:
            grad_x = torch.bmm(update, _merged(a, b, ctx.base, ctx.scale)).view(x.shape)
        elif ctx.needs_input_grad[0]:
            through_base = linear(update, ctx.base.weight.mT)
            grad_x = through_base.baddbmm_(grad_hidden.mT, a).view(x.shape)
        return grad_x, grad_a, grad_b, None, None


class FastAdaptedLayers(AdaptedLayers):
    """Adapted layers whose matrices are made once a change of the adapters, padded where that pays.

    Args:
        plain: the layers of a UNet, as its agents wrapped them.
    """

    def __init__(self, plain: AdaptedLayers) -> None:
        self.by_name, self.layout, self.dtype = plain.by_name, plain.layout, plain.dtype
        self._wide = self.layout
        self._positions: torch.Tensor | None = None
        bases = {name: layer.base for name, layer in self.by_name.items()}
        weight = next(iter(bases.values())).weight
        if (rank := rank_of_products(self.layout.rank, weight)) != self.layout.rank:
            self._wide = FlatLayout(bases, rank)
            self._positions = positions_in(self._wide, self.layout).to(weight.device)
        # The adapters that are shown without gradient: how many, of which block, as of when.
        self._shown: tuple[torch.Tensor, int, int] | None = None

    def show(self, block: torch.Tensor, num_agents: int) -> None:
        """See `AdaptedLayers`; without gradient, what is shown serves until the block changes."""
        if torch.is_grad_enabled():
            self._shown = None
        else:
            if self._shows(block, num_agents):
                return
            self._shown = block, block._version, num_agents
        super().show(block, num_agents)

    def _shows(self, block: torch.Tensor, num_agents: int) -> bool:
        if self._shown is None:
            return False
        shown, version, num_shown = self._shown
        return shown is block and (version, num_shown) == (block._version, num_agents)

    def split(self, block: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """See `AdaptedLayers`."""
        if self._positions is not None:
            padded = block.new_zeros(len(block), self._wide.size)
            block = padded.index_copy(1, self._positions, block)
        return self._wide.split(block)


def positions_in(wide: FlatLayout, layout: FlatLayout) -> torch.Tensor:
    """Where each entry (P,) of a layout goes in one of the same layers with a higher rank.

    The added ranks are zeros: they neither change an update nor get a gradient.
    """
    places = torch.arange(wide.size)
    positions = torch.full((layout.size,), -1)
    for name in layout.layer_names:
        pairs = zip(layout.matrices(positions, name), wide.matrices(places, name), strict=True)
        for own, wider in pairs:
            rows, columns = own.shape
            own.copy_(wider[:rows, :columns])
    is_between = positions < 0  # zeros that align the matrices: they go where zeros are
    is_free = torch.ones(wide.size, dtype=torch.bool)
    is_free[positions[~is_between]] = False
    positions[is_between] = is_free.nonzero().flatten()[: int(is_between.sum())]
    return positions


def rank_of_products(rank: int, weight: torch.Tensor) -> int:
    """The rank with which layers multiply: a GPU takes longer for one that is no multiple of eight.

    The products of an adapter of rank 4 in bfloat16, forward and backward, took an H100 1.6 times
    as long as those of rank 8.

    Args:
        rank: of the adapters.
        weight: of one of the layers.
    """
    is_padded = weight.is_cuda and weight.dtype.itemsize == 2
    return -(-rank // _TENSOR_CORE) * _TENSOR_CORE if is_padded else rank
