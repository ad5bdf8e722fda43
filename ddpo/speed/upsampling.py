"""Upsampling by two and the 3x3 convolution after it, as one transposed convolution.

Nearest-neighbour upsampling repeats every pixel: up(x)[2i] = up(x)[2i + 1] = x[i]. So in one
dimension, a kernel w of 3 on the large image is a kernel k of 4 and stride 2 on the small one:

    k = (w_2, w_1 + w_2, w_0 + w_1, w_0),   (w * up(x))[j] = sum over i of k[j + 1 - 2i] x[i]

In two dimensions this takes 16 products instead of 36, and the large image is never made. Results
are the same up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn

from ddpo.speed.convolutions import FrozenConv2d, pads_with_zeros
from ddpo.speed.products import exact


class FrozenUpsample2D(Upsample2D):  # type: ignore[misc]
    """diffusers' upsampling layer, with the kernel of `merged_kernel` beside its own weights."""

    kernel: torch.Tensor

    def merge(self) -> None:
        """Sum the weights. Once is enough: they are constant."""
        kernel = merged_kernel(self.get_parameter("conv.weight"))
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(
        self, hidden_states: torch.Tensor, output_size: int | None = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """(rows, in, h, w) to (rows, out, 2 h, 2 w), or to `output_size` if it is given."""
        out: torch.Tensor
        if output_size is not None:
            out = super().forward(hidden_states, output_size, *args, **kwargs)
        elif torch.is_grad_enabled():
            out = _Upsampling.apply(hidden_states, self)  # type: ignore[no-untyped-call]
        else:
            out = _upsampled(hidden_states, self)
        return out


class _Upsampling(torch.autograd.Function):
    """`_upsampled`, differentiable with respect to its input only."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: FrozenUpsample2D) -> torch.Tensor:
        ctx.layer = layer  # not with save_for_backward, see `ddpo/speed/convolutions.py`
        return _upsampled(x, layer)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return nn.functional.conv2d(gradient, ctx.layer.kernel, stride=2, padding=1), None


def _upsampled(x: torch.Tensor, layer: FrozenUpsample2D) -> torch.Tensor:
    return nn.functional.conv_transpose2d(x, layer.kernel, layer.conv.bias, stride=2, padding=1)


def can_merge(layer: Upsample2D) -> bool:
    """Whether `FrozenUpsample2D` computes the same as a layer.

    Layers on the meta device are left as published: their cost is counted there.
    """
    convolution: Any = getattr(layer, "conv", None)
    return (
        type(convolution) in {nn.Conv2d, FrozenConv2d}
        and pads_with_zeros(convolution)
        and (convolution.kernel_size, convolution.padding) == ((3, 3), (1, 1))
        and layer.interpolate
        and layer.norm is None
        and not convolution.weight.is_meta
    )


def merged_kernel(weight: torch.Tensor) -> torch.Tensor:
    """The (in, out, 4, 4) kernel of the transposed convolution, from (out, in, 3, 3) weights.

    Sums are rounded once, to the weights' dtype. The kernel has the weights' memory layout.
    """
    padded = nn.functional.pad(exact(weight).flip(2, 3), (1, 1, 1, 1))
    rows = padded[:, :, 1:] + padded[:, :, :-1]  # each pixel becomes two, first in height
    kernel = (rows[..., 1:] + rows[..., :-1]).transpose(0, 1).to(weight.dtype)  # then in width
    is_channels_last = weight.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    return kernel.contiguous(memory_format=layout)
