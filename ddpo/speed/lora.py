"""The stacked LoRA layer with fewer and wider products.

If an agent has many rows, W + s B A is summed first, and one product serves both terms:

    x W^T + s (x A^T) B^T  =  x (W + s B A)^T

Otherwise both terms are computed, and the second is added in place. The backward pass is written
out with products that are wide in `rows`: autograd's are tall with only `rank` columns, and
processors have no fast kernel for them. With h = x A^T and g = dL/dy:

    dL/dB = s g^T h,   dL/dA = s (B^T g^T) x,   dL/dx = g W + s (g B) A

Without gradient, the layers' matrices are kept until the adapters change. In half precision on a
GPU they are padded with zeros to a rank that its tensor cores support.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ddpo.agents.layout import FlatLayout
from ddpo.agents.lora import AdaptedLayers, StackedLoRALinear
from ddpo.speed.products import is_for_onednn, linear

if TYPE_CHECKING:
    from torch import nn

_TENSOR_CORE = 8  # half-precision entries that a GPU's tensor cores take at a time


class FastLoRALinear(StackedLoRALinear):
    """`StackedLoRALinear` with fewer and wider products; the same up to rounding."""

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
    """The adapted layer's output (..., out), and x A^T (K, rows, rank) if it was computed."""
    rows = _by_agent(x, a)
    # One product with the summed weights.
    if merges(rows, base.weight):
        out = torch.bmm(rows, _merged(a, b, base, scale).mT)
        if base.bias is not None:
            out += base.bias
        return out.view(*x.shape[:-1], -1), None
    # Both terms, the second added to the first in place.
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
    """Whether the rows of an agent (K, rows, in) are multiplied by the summed weights.

    They are if summing is less work than the low-rank product, but only on a CPU in float32 or
    wider. A sum rounded to half precision, or to a GPU's tf32, would lose small updates.
    """
    is_exact = x.device.type == "cpu" and x.dtype.itemsize >= torch.float32.itemsize
    is_less = x.shape[1] * sum(weight.shape) >= weight.numel()
    return is_exact and is_less and not is_for_onednn(x, weight)


def _merged(a: torch.Tensor, b: torch.Tensor, base: nn.Linear, scale: float) -> torch.Tensor:
    """W + scale * B A of every agent, (K, out, in); made for one product and not kept."""
    return torch.baddbmm(base.weight.expand(len(b), -1, -1), b, a, alpha=scale)


def _by_agent(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """View agent-major x (..., width) as (K, rows, width)."""
    return x.reshape(len(matrix), -1, x.shape[-1])


class _Adapted(torch.autograd.Function):
    """`_adapted`, differentiable with respect to x, A and B."""

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
        # The adapters' gradients, as products that are wide in rows.
        grad_b = torch.bmm(hidden.mT, update).mT
        grad_hidden = torch.bmm(b.mT, update.mT)  # (K, rank, rows)
        if ctx.scale != 1:
            grad_b *= ctx.scale
            grad_hidden *= ctx.scale
        grad_a = torch.bmm(grad_hidden, rows)
        # The input's gradient, by the same form as the forward pass.
        grad_x = None
        if ctx.needs_input_grad[0] and is_merged:
            grad_x = torch.bmm(update, _merged(a, b, ctx.base, ctx.scale)).view(x.shape)
        elif ctx.needs_input_grad[0]:
            through_base = linear(update, ctx.base.weight.mT)
            grad_x = through_base.baddbmm_(grad_hidden.mT, a).view(x.shape)
        return grad_x, grad_a, grad_b, None, None


class FastAdaptedLayers(AdaptedLayers):
    """Adapted layers that make their matrices once per change of the adapters, padded if it pays.

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
        # The adapters shown without gradient: their block, its version, and how many.
        self._shown: tuple[torch.Tensor, int, int] | None = None

    def show(self, block: torch.Tensor, num_agents: int) -> None:
        """See `AdaptedLayers`; without gradient, matrices are reused until the block changes."""
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
    """The position of each entry (P,) of a layout in a layout of the same layers with higher rank.

    The added ranks are zeros: they do not change an update and get no gradient.
    """
    # Entries of matrices: the first rows of A and the first columns of B.
    places = torch.arange(wide.size)
    positions = torch.full((layout.size,), -1)
    for name in layout.layer_names:
        pairs = zip(layout.matrices(positions, name), wide.matrices(places, name), strict=True)
        for own, wider in pairs:
            rows, columns = own.shape
            own.copy_(wider[:rows, :columns])
    # The zeros that align matrices go to any free places, which hold zeros too.
    is_between = positions < 0
    is_free = torch.ones(wide.size, dtype=torch.bool)
    is_free[positions[~is_between]] = False
    positions[is_between] = is_free.nonzero().flatten()[: int(is_between.sum())]
    return positions


def rank_of_products(rank: int, weight: torch.Tensor) -> int:
    """The rank of the products: on a GPU in half precision, the next multiple of eight.

    Other ranks are slower. In bfloat16 on an H100, forward and backward products took 1.6 times as
    long at rank 4 as at rank 8.

    Args:
        rank: of the adapters.
        weight: of one of the layers.
    """
    is_padded = weight.is_cuda and weight.dtype.itemsize == 2
    return -(-rank // _TENSOR_CORE) * _TENSOR_CORE if is_padded else rank
