"""Layers of the frozen base model whose passes over memory torch.compile fuses: for GPUs.

Between its products a UNet goes over its activations many times: norms, activation functions,
biases and sums, a pass each, and copies, because PyTorch's group norm wants another memory layout
than a GPU's convolutions. Here it is one pass, or two where a norm needs its statistics first, in
channels-last layout. These few functions are compiled for tensors of nearly any size at once (a
single row, or another dtype, has kernels of its own), in a fraction of the time that the whole UNet
takes for every number of rows.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import _dynamo as dynamo
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ddpo.speed.attention import FrozenFeedForward
from ddpo.speed.compiling import settle, succeeds
from ddpo.speed.convolutions import FrozenResnetBlock2D, convolve
from ddpo.speed.layers import LayerKinds, always, change_layers
from ddpo.speed.products import exact

if TYPE_CHECKING:
    from collections.abc import Callable


def can_fuse(device: torch.device) -> bool:
    """Whether torch.compile works on a device, tried on the smallest function; if not, says why."""

    def trial() -> torch.Tensor:
        out: torch.Tensor = _Gate.apply(  # type: ignore[no-untyped-call]
            torch.ones(4, 2, 64, device=device, requires_grad=True)
        )
        return out

    return succeeds(trial, "norms and activations")


def fuse(module: nn.Module) -> None:
    """Fuse what can be of a module, in place; its memory layout is channels last after.

    Results change by rounding only: what went through half precision between passes no longer does.

    Args:
        module: as `quicken` leaves it.
    """
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    change_layers(module, FUSED)


class FusedResnetBlock2D(FrozenResnetBlock2D):
    """A residual block with the biases of its convolutions in the passes that follow them."""

    def forward(self, input_tensor: torch.Tensor, temb: Any, *_: Any, **__: Any) -> torch.Tensor:
        """(rows, in, h, w), and (rows, channels) of the timestep, to (rows, out, h, w)."""
        shift = self.conv1.bias.repeat(len(input_tensor), 1)
        if self.time_emb_proj is not None:
            shift += self.time_emb_proj(functional.silu(temb))
        hidden = convolve(normalised(input_tensor, self.norm1, silu=True), self.conv1, None)
        hidden = normalised(hidden, self.norm2, shift, silu=True)
        hidden = convolve(hidden, self.conv2, None)
        bias = self.conv2.bias
        if self.conv_shortcut is not None:
            input_tensor = convolve(input_tensor, self.conv_shortcut, None)
            if self.conv_shortcut.bias is not None:
                bias = bias + self.conv_shortcut.bias
        inputs = (_columns(_pixels(each)) for each in (input_tensor, hidden))
        out = _Sum.apply(*inputs, bias.view(1, -1))  # type: ignore[no-untyped-call]
        return _image(out, hidden)


class FusedGroupNorm(nn.GroupNorm):
    """A group norm that stays in channels-last layout."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.GroupNorm's name
        """(rows, channels, ...) to the same shape."""
        return normalised(input, self) if input.dim() == 4 else super().forward(input)


class FusedFeedForward(FrozenFeedForward):
    """A feed-forward network of two products and a gate."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """(rows, positions, channels) to the same shape."""
        both = self.net[0].proj(hidden_states)
        gated = _Gate.apply(both.view(-1, 2, both.shape[-1] // 2))  # type: ignore[no-untyped-call]
        out: torch.Tensor = self.net[2](gated.view(*both.shape[:-1], -1))
        return out


def _pixels(x: torch.Tensor) -> torch.Tensor:
    """(rows, channels, h, w) as (rows, h w, channels): a copy, if not channels last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def _image(pixels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`_pixels` of an image, or `_columns` of them, as (rows, channels, h, w)."""
    rows, _, height, width = like.shape
    return pixels.view(rows, height, width, -1).permute(0, 3, 1, 2)


def _columns(pixels: torch.Tensor) -> torch.Tensor:
    """(rows, positions, channels) as (rows positions, 1, channels)."""
    return pixels.view(-1, 1, pixels.shape[-1])


def normalised(
    x: torch.Tensor, norm: nn.GroupNorm, shift: torch.Tensor | None = None, *, silu: bool = False
) -> torch.Tensor:
    """The group norm of x (rows, channels, h, w) + shift (rows, channels); SiLU of it if wanted."""
    shift = x.new_zeros(x.shape[:2]) if shift is None else shift
    groups = norm.num_groups, -1
    affine = (each.unflatten(0, groups) for each in (norm.weight, norm.bias))
    inputs = _pixels(x).unflatten(2, groups), shift.unflatten(1, groups), *affine
    out = _GroupNorm.apply(*inputs, norm.eps, silu)  # type: ignore[no-untyped-call]
    return _image(out, x)


class _Fused:
    """A function that torch.compile makes one pass or two of, for tensors of any size.

    Only the last but one of a tensor's sizes is constant in it: groups, or the halves of a gate.

    Args:
        function: of tensors and constants, to one tensor or several.
        results: makes them uninitialised, for the meta device, where only memory counts.
        is_tiled: whether a kernel's blocks have the tensor's dimensions, so that no index is
            divided by sizes. On an H100 sums and gates take two thirds of the time so, but group
            norms a third more.
    """

    def __init__(
        self, function: Callable[..., Any], results: Callable[..., Any], *, is_tiled: bool
    ) -> None:
        self._function = function
        self._results = results
        self._options: dict[str, Any] = {"triton.prefer_nd_tiling": is_tiled}

    @cached_property
    def _compiled(self) -> Callable[..., Any]:
        return torch.compile(self._function, dynamic=True, options=self._options)

    def __call__(self, *inputs: Any) -> Any:
        if inputs[0].is_meta:
            return self._results(*inputs)
        for each in inputs:
            if isinstance(each, torch.Tensor):
                dynamo.mark_static(each, each.dim() - 2)
        return self._compiled(*inputs)


def _group_norm(
    x: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, ...]:
    """The output; the mean of x, by channel; the mean and 1 / std of x + shift, by group."""
    values, shift, weight, bias = map(exact, (x, shift, weight, bias))
    var, mean = torch.var_mean(values, dim=1, correction=0)
    means = mean + shift
    center = means.mean(2, keepdim=True)
    rstd = torch.rsqrt((var + (means - center).square()).mean(2, keepdim=True) + eps)
    out = (values + (shift - center)[:, None]) * (weight * rstd)[:, None] + bias
    return (functional.silu(out) if silu else out).to(x.dtype), mean, center, rstd


def _group_norm_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    shift: torch.Tensor,
    mean: torch.Tensor,
    center: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of x and shift."""
    slope, values, offset, weight, bias = map(exact, (gradient, x, shift, weight, bias))
    offset = offset - center
    centered, scale = values + offset[:, None], weight * rstd
    if silu:
        out = centered * scale[:, None] + bias
        slope = slope * out.sigmoid() * (1 + out * (1 - out.sigmoid()))
    positions, total = x.shape[1], slope.sum(1)
    size = positions * x.shape[3]  # entries of a group
    along_mean = (weight * total).sum(2, keepdim=True) * rstd / size
    along_x = (weight * (slope * centered).sum(1)).sum(2, keepdim=True) * rstd**3 / size
    grad_x = slope * scale[:, None] - along_mean[:, None] - centered * along_x[:, None]
    grad_shift = total * scale - positions * (along_mean + (mean + offset) * along_x)  # its sum
    return grad_x.to(x.dtype), grad_shift.to(shift.dtype)


class _GroupNorm(torch.autograd.Function):
    """Group norm (Wu & He 2018) of x + shift, then SiLU if wanted: keeps x and statistics only.

    x is (rows, positions, groups, channels), shift (rows, groups, channels); weight and bias, which
    are constant, (groups, channels).
    """

    _forward = _Fused(
        _group_norm,
        lambda x, shift, *_: (torch.empty_like(x), shift.clone(), shift.clone(), shift.clone()),
        is_tiled=False,
    )
    _backward = _Fused(
        _group_norm_backward,
        lambda _, x, shift, *__: (torch.empty_like(x), torch.empty_like(shift)),
        is_tiled=False,
    )

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shift: torch.Tensor, *constants: Any) -> torch.Tensor:
        out: torch.Tensor
        out, *statistics = _GroupNorm._forward(x.detach(), shift.detach(), *constants)
        ctx.save_for_backward(x, shift, *statistics)
        weight, bias, _eps, silu = constants
        ctx.constants = weight, bias, silu
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        settle(is_lenient=True)
        inputs = gradient.contiguous(), *ctx.saved_tensors, *ctx.constants
        return *_GroupNorm._backward(*inputs), None, None, None, None


def _gated(x: torch.Tensor) -> torch.Tensor:
    return x[:, :1] * functional.gelu(x[:, 1:])


def _gated_backward(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    hidden, gate = x[:, :1], x[:, 1:]
    gelu, pull_back = torch.func.vjp(functional.gelu, gate)  # type: ignore[misc]
    return torch.cat([gradient * gelu, *pull_back(gradient * hidden)], dim=1)


class _Gate(torch.autograd.Function):
    """The first half of x (positions, 2, width) times the GELU of the second: keeps x only."""

    _forward = _Fused(_gated, lambda x: torch.empty_like(x[:, :1]), is_tiled=True)
    _backward = _Fused(_gated_backward, lambda _, x: torch.empty_like(x), is_tiled=True)

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        out: torch.Tensor = _Gate._forward(x.detach())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        settle(is_lenient=True)
        out: torch.Tensor = _Gate._backward(gradient.contiguous(), *ctx.saved_tensors)
        return out


class _Sum(torch.autograd.Function):
    """x + y + bias, of (positions, 1, channels) and a constant (1, channels): keeps nothing."""

    _forward = _Fused(
        lambda x, y, bias: x + (y + bias), lambda x, *_: torch.empty_like(x), is_tiled=True
    )

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        del ctx
        out: torch.Tensor = _Sum._forward(x.detach(), y.detach(), bias)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        del ctx
        return gradient, gradient, None


FUSED: LayerKinds = {
    FrozenResnetBlock2D: (FusedResnetBlock2D, always),
    FrozenFeedForward: (FusedFeedForward, always),
    nn.GroupNorm: (FusedGroupNorm, lambda layer: layer.affine),
}
