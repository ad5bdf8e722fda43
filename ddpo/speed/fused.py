"""Layers of the frozen base model with fewer passes over memory, fused by torch.compile: for GPUs.

Between its products, a UNet passes over its activations many times: one pass for each norm,
activation function, bias and sum. It also copies them, because PyTorch's group norm and a GPU's
convolutions want different memory layouts. Here each gap between products is one pass in
channels-last layout, or two if a norm needs its statistics first:

    silu(norm(x + shift)),    h * gelu(g),    x + y + bias

Only these three functions and their gradients are compiled. One compilation serves nearly all sizes
(a single row, or another dtype, has its own). It takes a fraction of the time of compiling the
whole UNet, which would be needed for every number of rows.
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
    """Whether torch.compile works on a device, by a small trial; if not, a warning says why."""

    def trial() -> torch.Tensor:
        out: torch.Tensor = _Gate.apply(  # type: ignore[no-untyped-call]
            torch.ones(4, 2, 64, device=device, requires_grad=True)
        )
        return out

    return succeeds(trial, "norms and activations")


def fuse(module: nn.Module) -> None:
    """Fuse the layers of a module, in place, and change its memory layout to channels last.

    Results change only by rounding: values between passes are no longer rounded to half precision.

    Args:
        module: after `quicken`.
    """
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    change_layers(module, FUSED)


class FusedResnetBlock2D(FrozenResnetBlock2D):
    """A residual block with the biases of its convolutions in the passes that follow them."""

    def forward(self, input_tensor: torch.Tensor, temb: Any, *_: Any, **__: Any) -> torch.Tensor:
        """(rows, in, h, w) and timestep embeddings (rows, channels), to (rows, out, h, w)."""
        # First half. conv1's bias and the timestep wait as a shift for the second norm.
        shift = self.conv1.bias.repeat(len(input_tensor), 1)
        if self.time_emb_proj is not None:
            shift += self.time_emb_proj(functional.silu(temb))
        hidden = convolve(normalised(input_tensor, self.norm1, silu=True), self.conv1, None)
        # Second half. The other biases wait for the sum.
        hidden = normalised(hidden, self.norm2, shift, silu=True)
        hidden = convolve(hidden, self.conv2, None)
        # The sum of both paths and all biases left.
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
    """(rows, channels, h, w) as (rows, h w, channels); a copy unless channels last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def _image(pixels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The result of `_pixels` or `_columns` as an image (rows, channels, h, w)."""
    rows, _, height, width = like.shape
    return pixels.view(rows, height, width, -1).permute(0, 3, 1, 2)


def _columns(pixels: torch.Tensor) -> torch.Tensor:
    """(rows, positions, channels) as (rows positions, 1, channels)."""
    return pixels.view(-1, 1, pixels.shape[-1])


def normalised(
    x: torch.Tensor, norm: nn.GroupNorm, shift: torch.Tensor | None = None, *, silu: bool = False
) -> torch.Tensor:
    """Group norm of x (rows, channels, h, w) + shift (rows, channels), then SiLU if wanted."""
    shift = x.new_zeros(x.shape[:2]) if shift is None else shift
    groups = norm.num_groups, -1
    affine = (each.unflatten(0, groups) for each in (norm.weight, norm.bias))
    inputs = _pixels(x).unflatten(2, groups), shift.unflatten(1, groups), *affine
    out = _GroupNorm.apply(*inputs, norm.eps, silu)  # type: ignore[no-untyped-call]
    return _image(out, x)


class _Fused:
    """A function that torch.compile turns into one or two passes, for tensors of any size.

    Only the second-to-last size of a tensor is compiled as a constant: the number of groups, or the
    two halves of a gate.

    Args:
        function: of tensors and constants; returns one tensor or several.
        results: makes uninitialised results, for the meta device, where only memory counts.
        is_tiled: whether a kernel's blocks have the tensor's dimensions, which saves dividing
            indices by sizes. On an H100, sums and gates then take two thirds of the time, but group
            norms take a third more.
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
    """The output; the mean of x per channel; the mean and 1 / std of x + shift per group.

    With channel means m_c and variances v_c of x, and shifts s_c, a group of channels has
    mean = mean_c(m_c + s_c) and var = mean_c(v_c + (m_c + s_c - mean)^2).
    """
    values, shift, weight, bias = map(exact, (x, shift, weight, bias))
    # Statistics: one pass over x, per channel; then per group, on small tensors.
    var, mean = torch.var_mean(values, dim=1, correction=0)
    means = mean + shift
    center = means.mean(2, keepdim=True)
    rstd = torch.rsqrt((var + (means - center).square()).mean(2, keepdim=True) + eps)
    # Output: a second pass over x.
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
    """The gradients of x and shift.

    With g the gradient at the norm's output, w the weight, r = 1 / std, c = x + shift - mean, and
    means over the entries of a group:

        dL/dx = w r g - r mean(w g) - r^3 c mean(w g c),    dL/dshift = dL/dx, summed over positions
    """
    slope, values, offset, weight, bias = map(exact, (gradient, x, shift, weight, bias))
    offset = offset - center
    centered, scale = values + offset[:, None], weight * rstd
    # Back through SiLU.
    if silu:
        out = centered * scale[:, None] + bias
        slope = slope * out.sigmoid() * (1 + out * (1 - out.sigmoid()))
    # The two means over a group.
    positions, total = x.shape[1], slope.sum(1)
    size = positions * x.shape[3]  # entries of a group
    along_mean = (weight * total).sum(2, keepdim=True) * rstd / size
    along_x = (weight * (slope * centered).sum(1)).sum(2, keepdim=True) * rstd**3 / size
    # The gradients. The sum over positions is written out, so it needs no further pass.
    grad_x = slope * scale[:, None] - along_mean[:, None] - centered * along_x[:, None]
    grad_shift = total * scale - positions * (along_mean + (mean + offset) * along_x)
    return grad_x.to(x.dtype), grad_shift.to(shift.dtype)


class _GroupNorm(torch.autograd.Function):
    """Group norm (Wu & He 2018) of x + shift, then SiLU if wanted. Keeps only x and statistics.

    x is (rows, positions, groups, channels), shift (rows, groups, channels). The constant weight
    and bias are (groups, channels).
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
    """The first half of x (positions, 2, width) times the GELU of the second. Keeps only x."""

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
    """x + y + bias, for (positions, 1, channels) and a constant (1, channels). Keeps nothing."""

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
