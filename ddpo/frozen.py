"""The base model while adapters are trained: constant, and keeping little for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.grad import conv2d_input


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
    that is a seventh of what a row with gradient needs. Results are the same to the bit.
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
        *geometry: Any,
    ) -> torch.Tensor:
        # Not with save_for_backward: checkpointing would repeat the convolution to save it again.
        ctx.shape, ctx.weight, ctx.geometry = x.shape, weight, geometry
        return nn.functional.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_input = conv2d_input(ctx.shape, ctx.weight, gradient, *ctx.geometry)
        return (grad_input, *[None] * 6)
