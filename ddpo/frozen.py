"""The base model while adapters are trained: constant, and keeping little for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def freeze(module: nn.Module) -> None:
    """Make a module constant, in place: no gradients, evaluation mode, `FrozenConv2d`.

    Args:
        module: its input and what is put into it may still want gradients.
    """
    module.requires_grad_(False).eval()
    for each in module.modules():
        if type(each) is nn.Conv2d:
            each.__class__ = FrozenConv2d


class FrozenConv2d(nn.Conv2d):
    """A convolution whose weights want no gradient, and which so keeps no input for backward.

    PyTorch's own keeps it for the gradient of the weights, wanted or not: in Stable Diffusion 1.5
    that is a seventh of what a row with gradient needs. Results are the same up to rounding.
    """

    def _conv_forward(
        self,
        input: torch.Tensor,  # noqa: A002 - nn.Conv2d's name
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        out: torch.Tensor
        is_plain = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if torch.is_grad_enabled() and is_plain:
            out = _InputGradient.apply(  # type: ignore[no-untyped-call]
                input, weight, bias, self.stride, self.padding, self.dilation, self.groups
            )
        else:
            out = super()._conv_forward(input, weight, bias)
        return out


class _InputGradient(torch.autograd.Function):
    """conv2d, differentiable with respect to its input only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> torch.Tensor:
        # Not with save_for_backward: checkpointing would repeat the convolution to save it again.
        ctx.weight, ctx.size = weight, x.shape[2:]
        ctx.geometry = stride, padding, dilation, groups
        return nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # By definition the transposed convolution; on CPUs faster than `torch.nn.grad.conv2d_input`
        # and with less workspace. What the strides did not reach of the input is its padding.
        stride, padding, dilation, groups = ctx.geometry
        sizes = zip(ctx.size, padding, dilation, ctx.weight.shape[2:], stride, strict=True)
        unreached = [(size + 2 * p - d * (k - 1) - 1) % s for size, p, d, k, s in sizes]
        grad_input = nn.functional.conv_transpose2d(
            gradient, ctx.weight, None, stride, padding, unreached, groups, dilation
        )
        return (grad_input, *[None] * 6)
