"""A frozen linear layer with the low-rank updates of K agents (LoRA: Hu et al. 2022, eq. 3)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ddpo.speed.frozen import is_for_onednn, linear


class Factors(NamedTuple):
    """The transposed adapters of one layer: rows are multiplied from the left.

    Attributes:
        down: (K, in, rank), every agent's A^T.
        up: (K, rank, out), every agent's B^T.
    """

    down: torch.Tensor
    up: torch.Tensor


Stack = dict[str, Factors]  # by layer


class StackedLoRALinear(nn.Module):
    """A frozen linear layer plus K low-rank updates, one per agent.

    Input rows are agent-major; row block k gets base(x) + scale * x A_k^T B_k^T.

    Args:
        base: the frozen layer.
        scale: alpha / rank.
        stack: holds the factors of every adapted layer in the dtype of its input, as `Agents` shows
            them for each pass.
        name: of this layer in it.
    """

    def __init__(self, base: nn.Linear, scale: float, stack: Stack, name: str) -> None:
        super().__init__()
        self.is_adapted = True
        self.base = base
        self.scale = scale
        self.stack = stack
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base layer's output plus each row's low-rank update: (..., in) to (..., out)."""
        out: torch.Tensor
        if not self.is_adapted:
            out = self.base(x)
        elif torch.is_grad_enabled():
            out = _Adapted.apply(  # type: ignore[no-untyped-call]
                x, *self.stack[self.name], self.base, self.scale
            )
        else:
            out, _ = _adapted(x, *self.stack[self.name], self.base, self.scale)
        return out


def _adapted(
    x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, base: nn.Linear, scale: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The adapted layer's output (..., out), and x A^T (K, rows, rank) if that was needed."""
    rows = _by_agent(x, down)
    if _merges(rows, base.weight):
        out = torch.bmm(rows, _merged(down, up, base, scale).mT)
        if base.bias is not None:
            out += base.bias
        return out.view(*x.shape[:-1], -1), None
    out = linear(x, base.weight, base.bias)
    hidden = torch.bmm(rows, down)
    if x.device.type == "cpu":
        # Scaled, then added, as peft does: a fused baddbmm rounds otherwise on some processors.
        update = torch.bmm(hidden, up)
        if scale != 1:
            update *= scale
        out.add_(update.view(out.shape))
    else:
        out.view(up.shape[0], -1, out.shape[-1]).baddbmm_(hidden, up, alpha=scale)
    return out, hidden


def _merges(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the rows of an agent (K, rows, in) are multiplied by the sum of both weights.

    Where that is less work than the low-rank product, and in float32 at least: a sum rounded to
    half precision, or to a GPU's tf32, would lose small updates.
    """
    is_exact = x.device.type == "cpu" and x.dtype.itemsize >= torch.float32.itemsize
    is_less = x.shape[1] * sum(weight.shape) >= weight.numel()
    return is_exact and is_less and not is_for_onednn(x, weight)


def _merged(down: torch.Tensor, up: torch.Tensor, base: nn.Linear, scale: float) -> torch.Tensor:
    """Every agent's W + scale * B A: (K, out, in), made for this product and not kept."""
    return torch.baddbmm(base.weight.expand(len(up), -1, -1), up.mT, down.mT, alpha=scale)


def _by_agent(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Agent-major x (..., width) as (K, rows, width)."""
    return x.reshape(factor.shape[0], -1, x.shape[-1])


class _Adapted(torch.autograd.Function):
    """`_adapted`, differentiable with respect to x and the factors.

    Autograd's own backward pass multiplies tall matrices by `rank` columns, for which processors
    have no fast kernel; here every product is as wide as the layer, and gradients add in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        down: torch.Tensor,
        up: torch.Tensor,
        base: nn.Linear,
        scale: float,
    ) -> torch.Tensor:
        out, hidden = _adapted(x, down, up, base, scale)
        ctx.save_for_backward(x, hidden, down, up)
        ctx.base, ctx.scale = base, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, hidden, down, up = ctx.saved_tensors
        rows, update = _by_agent(x, down), _by_agent(gradient, up)
        is_merged = hidden is None
        if is_merged:
            hidden = torch.bmm(rows, down)
        grad_up = torch.bmm(hidden.mT, update)
        grad_hidden = torch.bmm(up, update.mT)  # (K, rank, rows)
        if ctx.scale != 1:
            grad_up *= ctx.scale
            grad_hidden *= ctx.scale
        grad_down = torch.bmm(grad_hidden, rows).mT
        grad_x = None
        if ctx.needs_input_grad[0] and is_merged:
            grad_x = torch.bmm(update, _merged(down, up, ctx.base, ctx.scale)).view(x.shape)
        elif ctx.needs_input_grad[0]:
            through_base = linear(update, ctx.base.weight.mT)
            grad_x = through_base.baddbmm_(grad_hidden.mT, down.mT).view(x.shape)
        return grad_x, grad_down, grad_up, None, None
