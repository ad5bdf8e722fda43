"""Convolutions with frozen weights, which keep no input, and residual blocks that work in place.

    y = W * x + b    =>    dL/dx = the transposed convolution of dL/dy with W

The input x is needed only for dL/dW, and W is frozen. PyTorch keeps x all the same: in Stable
Diffusion 1.5 this takes a seventh of the memory of a row with gradient.

    block(x) = x + conv2(silu(norm2(conv1(silu(norm1(x))) + time)))

Without gradient, each silu of a residual block may overwrite its input. diffusers' output scale, a
division by one, is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


class FrozenConv2d(nn.Conv2d):
    """A convolution with frozen weights, which keeps no input for its backward pass.

    Results are the same up to rounding.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Conv2d's name
        """(rows, in, h, w) to (rows, out, h', w')."""
        return convolve(input, self, self.bias)


def convolve(x: torch.Tensor, layer: FrozenConv2d, bias: torch.Tensor | None) -> torch.Tensor:
    """The convolution of a layer, with the given bias or none: (rows, out, h', w')."""
    out: torch.Tensor
    if torch.is_grad_enabled():
        out = _Convolution.apply(x, layer, bias)  # type: ignore[no-untyped-call]
    else:
        out = _convolved(x, layer, bias)
    return out


def pads_with_zeros(layer: nn.Conv2d) -> bool:
    """Whether `FrozenConv2d` computes the same as a layer."""
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _convolved(x: torch.Tensor, layer: FrozenConv2d, bias: torch.Tensor | None) -> torch.Tensor:
    geometry: Any = layer.stride, layer.padding, layer.dilation, layer.groups
    return nn.functional.conv2d(x, layer.weight, bias, *geometry)


class _Convolution(torch.autograd.Function):
    """conv2d, differentiable with respect to its input only."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: FrozenConv2d, bias: torch.Tensor | None
    ) -> torch.Tensor:
        # Not with save_for_backward: checkpointing would repeat the convolution to restore it.
        ctx.layer, ctx.size = layer, x.shape[2:]
        return _convolved(x, layer, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        layer, stride, padding = ctx.layer, ctx.layer.stride, ctx.layer.padding
        if layer.kernel_size == stride == (1, 1) and padding == (0, 0) and layer.groups == 1:
            # A matrix product: on a CPU, a transposed convolution of few rows takes twice as long.
            return nn.functional.conv2d(gradient, layer.weight.transpose(0, 1)), None, None
        # By definition a transposed convolution. On CPUs it is faster and needs less workspace than
        # `torch.nn.grad.conv2d_input`. Pixels of x that the strides did not reach are its padding.
        sizes = zip(ctx.size, padding, layer.dilation, layer.weight.shape[2:], stride, strict=True)
        unreached = [(size + 2 * p - d * (k - 1) - 1) % s for size, p, d, k, s in sizes]
        geometry = stride, padding, unreached, layer.groups, layer.dilation
        return nn.functional.conv_transpose2d(gradient, layer.weight, None, *geometry), None, None


class FrozenResnetBlock2D(ResnetBlock2D):  # type: ignore[misc]
    """A residual block that works in place where it may, and does not divide by one.

    Results are the same bit for bit.
    """

    def forward(self, input_tensor: torch.Tensor, temb: Any, *_: Any, **__: Any) -> torch.Tensor:
        """(rows, in, h, w) and timestep embeddings (rows, channels), to (rows, out, h, w)."""
        hidden: torch.Tensor = self.conv1(_silu(self.norm1(input_tensor)))
        if self.time_emb_proj is not None:
            hidden += self.time_emb_proj(nn.functional.silu(temb))[:, :, None, None]
        hidden = _silu(self.norm2(hidden))  # a statement of its own: it frees norm2's input
        hidden = self.conv2(hidden)
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return input_tensor + hidden


def _silu(x: torch.Tensor) -> torch.Tensor:
    """SiLU of a temporary tensor: in place, unless the backward pass needs the input."""
    return nn.functional.silu(x, inplace=not torch.is_grad_enabled())


def is_plain_block(block: ResnetBlock2D) -> bool:
    """Whether `FrozenResnetBlock2D` computes the same as a residual block."""
    return (
        block.upsample is None
        and block.downsample is None
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.time_embedding_norm != "scale_shift"
        and not block.skip_time_act
        and block.output_scale_factor == 1
    )
