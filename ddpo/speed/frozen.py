"""The base model while adapters are trained: constant, and keeping little for the backward pass."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

_BATCH, _FEWEST_MULTIPLICATIONS = 16, 2**22  # from where on a convolution is faster
_CACHE_BYTES = 2 * 2**20  # about what a core has to itself
_ZEN_5 = 26  # AMD's "cpu family" of its first processors that compute all 512 bits at once

# Kind of layer -> what it becomes, and which of its kind do.
LayerKinds = dict[type[nn.Module], tuple[Any, Any]]


def freeze(module: nn.Module) -> None:
    """Make a module constant, in place: no gradients, evaluation mode, layers of this module.

    Args:
        module: its input and what is put into it may still want gradients.
    """
    module.requires_grad_(False).eval()
    for each in change_layers(module, _FROZEN):
        if isinstance(each, FrozenUpsample2D):
            kernel = _merged_kernel(each.get_parameter("conv.weight"))
            each.register_buffer("kernel", kernel, persistent=False)


def change_layers(module: nn.Module, kinds: LayerKinds) -> list[nn.Module]:
    """Give the layers in a module that a table names another class; returns those."""
    changed = []
    for each in module.modules():
        kind, suits = kinds.get(type(each), (None, None))
        if kind is not None and suits(each):
            each.__class__ = kind
            changed.append(each)
    return changed


class FrozenConv2d(nn.Conv2d):
    """A convolution whose weights want no gradient, and which so keeps no input for backward.

    PyTorch's own keeps it for the gradient of the weights, wanted or not: in Stable Diffusion 1.5
    that is a seventh of what a row with gradient needs. Results are the same up to rounding.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Conv2d's name
        """(rows, in, h, w) to (rows, out, h', w')."""
        return convolve(input, self, self.bias)


def convolve(x: torch.Tensor, layer: FrozenConv2d, bias: torch.Tensor | None) -> torch.Tensor:
    """The convolution of a layer, with its bias or with none: (rows, out, h', w')."""
    out: torch.Tensor
    if torch.is_grad_enabled():
        out = _Convolution.apply(x, layer, bias)  # type: ignore[no-untyped-call]
    else:
        out = _convolved(x, layer, bias)
    return out


def _pads_with_zeros(layer: nn.Conv2d) -> bool:
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
        # Not with save_for_backward: checkpointing would repeat the convolution to save it again.
        ctx.layer, ctx.size = layer, x.shape[2:]
        return _convolved(x, layer, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        layer, stride, padding = ctx.layer, ctx.layer.stride, ctx.layer.padding
        if layer.kernel_size == stride == (1, 1) and padding == (0, 0) and layer.groups == 1:
            # A product, which takes a CPU twice as long, of few rows, as a transposed convolution.
            return nn.functional.conv2d(gradient, layer.weight.transpose(0, 1)), None, None
        # By definition the transposed convolution; on CPUs faster than `torch.nn.grad.conv2d_input`
        # and with less workspace. What the strides did not reach of the input is its padding.
        sizes = zip(ctx.size, padding, layer.dilation, layer.weight.shape[2:], stride, strict=True)
        unreached = [(size + 2 * p - d * (k - 1) - 1) % s for size, p, d, k, s in sizes]
        geometry = stride, padding, unreached, layer.groups, layer.dilation
        return nn.functional.conv_transpose2d(gradient, layer.weight, None, *geometry), None, None


class FrozenAttention(Attention):  # type: ignore[misc]
    """Attention without what nobody asks of it here: masks, other norms, a division by one.

    Results are the same to the bit. With a small model, to look for all that is 5 % of sampling.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> torch.Tensor:
        """(rows, positions, channels), and (rows, tokens, width), to the first's shape."""
        is_plain = hidden_states.dim() == 3 and type(self.processor) is AttnProcessor2_0
        if attention_mask is not None or cross_attention_kwargs or not is_plain:
            inputs = hidden_states, encoder_hidden_states, attention_mask
            return super().forward(*inputs, **cross_attention_kwargs)  # type: ignore[no-any-return]
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(hidden_states), self.to_k(context), self.to_v(context))
        )
        values = nn.functional.scaled_dot_product_attention(query, key, value)
        out: torch.Tensor = self.to_out[0](values.transpose(1, 2).flatten(2))
        return out


def _is_plain_attention(layer: Attention) -> bool:
    """Whether a layer is what `FrozenAttention` computes."""
    extras = layer.group_norm, layer.spatial_norm, layer.norm_q, layer.norm_k, layer.norm_cross
    return not any(extras) and not layer.residual_connection and layer.rescale_output_factor == 1


class FrozenTransformer2D(Transformer2DModel):  # type: ignore[misc]
    """Transformer blocks whose first and last product read and write images as they lie in memory.

    diffusers' convolutions of one pixel, or linear layers, need a copy in another layout. Results
    are the same up to rounding.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Any = None,
        *,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        """(rows, channels, h, w), and (rows, tokens, width) of prompts, to the first's shape."""
        if return_dict or any(each is not None for each in others.values()):
            others["return_dict"] = return_dict
            return super().forward(hidden_states, encoder_hidden_states, **others)
        pixels = _pixels_projected(self.norm(hidden_states).flatten(2).mT, self.proj_in)
        for block in self.transformer_blocks:
            run = block
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                run = partial(self._gradient_checkpointing_func, block)
            pixels = run(pixels, None, encoder_hidden_states)
        is_channels_last = hidden_states.is_contiguous(memory_format=torch.channels_last)
        out = _pixels_projected(pixels, self.proj_out, transposed=not is_channels_last)
        return (hidden_states + out.mT.unflatten(2, hidden_states.shape[2:]),)


def _is_plain_transformer(layer: Transformer2DModel) -> bool:
    """Whether a layer is what `FrozenTransformer2D` computes."""
    kind = layer.config.norm_type, layer.config.attention_type
    return bool(layer.is_input_continuous) and kind == ("layer_norm", "default")


def _pixels_projected(
    pixels: torch.Tensor, layer: Any, *, transposed: bool = False
) -> torch.Tensor:
    """What a layer makes of (rows, positions, channels).

    Args:
        pixels: in any memory layout.
        layer: linear, perhaps adapted, or a convolution of one pixel.
        transposed: whether the result shall lie in memory as (rows, channels, positions).
    """
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):  # is adapted
        out: torch.Tensor = layer(pixels)
        return out
    bias: Any = layer.bias
    weight, rows = layer.weight.flatten(1), len(pixels)
    if is_for_onednn(pixels, weight) or (not transposed and pixels.is_contiguous()):
        return constant_linear(pixels, weight, bias)
    weight = weight.expand(rows, -1, -1)
    if transposed:
        return torch.baddbmm(bias[:, None].expand(rows, -1, 1), weight, pixels.mT).mT
    return torch.baddbmm(bias.expand(rows, 1, -1), pixels, weight.mT)


class FrozenFeedForward(FeedForward):  # type: ignore[misc]
    """A feed-forward network that, on a CPU and without gradient, takes rows that fit its cache.

    Its hidden layer is eight times as wide as its input; at once it would go through memory.
    """

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """(rows, positions, channels) to the same shape."""
        rows, positions, _channels = hidden_states.shape
        products = self.net[0].proj, self.net[2]
        is_adapted = any(not isinstance(each, nn.Linear) for each in products)  # needs all rows
        if hidden_states.device.type == "cpu" and not (is_adapted or torch.is_grad_enabled()):
            width = products[0].out_features
            rows = max(1, _CACHE_BYTES // (positions * width * hidden_states.element_size()))
        forward = super().forward
        parts = [forward(part) for part in hidden_states.split(rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class FrozenResnetBlock2D(ResnetBlock2D):  # type: ignore[misc]
    """A residual block that works in place where it may, and does not divide by one.

    Results are the same to the bit.
    """

    def forward(self, input_tensor: torch.Tensor, temb: Any, *_: Any, **__: Any) -> torch.Tensor:
        """(rows, in, h, w), and (rows, channels) of the timestep, to (rows, out, h, w)."""
        hidden: torch.Tensor = self.conv1(_silu(self.norm1(input_tensor)))
        if self.time_emb_proj is not None:
            hidden += self.time_emb_proj(nn.functional.silu(temb))[:, :, None, None]
        hidden = _silu(self.norm2(hidden))  # two steps: the first one's input is freed
        hidden = self.conv2(hidden)
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return input_tensor + hidden


def _silu(x: torch.Tensor) -> torch.Tensor:
    """SiLU of what nobody else needs: in place, unless the backward pass does."""
    return nn.functional.silu(x, inplace=not torch.is_grad_enabled())


def _is_plain(block: ResnetBlock2D) -> bool:
    """Whether a residual block is what `FrozenResnetBlock2D` computes."""
    return (
        block.upsample is None
        and block.downsample is None
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.time_embedding_norm != "scale_shift"
        and not block.skip_time_act
        and block.output_scale_factor == 1
    )


class FrozenUpsample2D(Upsample2D):  # type: ignore[misc]
    """Nearest-neighbour upsampling by two and a 3x3 convolution, as one transposed convolution.

    Each of four neighbours of the large image sees the same few pixels of the small one, under sums
    of the 3x3 weights: 16 products where there were 36, and the large image is never made. Results
    are the same up to rounding.
    """

    kernel: torch.Tensor

    def forward(
        self, hidden_states: torch.Tensor, output_size: int | None = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """(rows, in, h, w) to (rows, out, 2 h, 2 w), or to another size if one is given."""
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
        ctx.layer = layer  # not saved: as for a convolution
        return _upsampled(x, layer)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return nn.functional.conv2d(gradient, ctx.layer.kernel, stride=2, padding=1), None


def _upsampled(x: torch.Tensor, layer: FrozenUpsample2D) -> torch.Tensor:
    return nn.functional.conv_transpose2d(x, layer.kernel, layer.conv.bias, stride=2, padding=1)


def _can_merge(layer: Upsample2D) -> bool:
    """Whether a layer is what `FrozenUpsample2D` computes.

    Not on the meta device, where layers are as published: what they cost is counted there.
    """
    convolution: Any = getattr(layer, "conv", None)
    return (
        type(convolution) in {nn.Conv2d, FrozenConv2d}
        and _pads_with_zeros(convolution)
        and (convolution.kernel_size, convolution.padding) == ((3, 3), (1, 1))
        and layer.interpolate
        and layer.norm is None
        and not convolution.weight.is_meta
    )


def _merged_kernel(weight: torch.Tensor) -> torch.Tensor:
    """The (in, out, 4, 4) kernel of the transposed convolution, from (out, in, 3, 3) weights.

    Sums are rounded once, to the weights' dtype and in their memory layout.
    """
    padded = nn.functional.pad(exact(weight).flip(2, 3), (1, 1, 1, 1))
    rows = padded[:, :, 1:] + padded[:, :, :-1]  # a pixel becomes two in each direction
    kernel = (rows[..., 1:] + rows[..., :-1]).transpose(0, 1).to(weight.dtype)
    is_channels_last = weight.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    return kernel.contiguous(memory_format=layout)


class FrozenLinear(nn.Linear):
    """A linear layer whose weights want no gradient, and whose products are those of `linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's name
        """(..., in) to (..., out)."""
        return constant_linear(input, self.weight, self.bias)


def constant_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """`linear`, differentiable with respect to x only."""
    out: torch.Tensor
    if torch.is_grad_enabled() and x.requires_grad:
        out = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    else:
        out = linear(x, weight, bias)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.weight = weight  # not saved: as for a convolution, checkpointing would repeat it
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return linear(gradient, ctx.weight.mT), None, None


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The product x W^T + b by the faster library: the same up to rounding.

    MKL, which multiplies matrices, uses half the width of AVX-512 on processors that are not
    Intel's, and is slow where they have all of it; oneDNN is not, but is only asked for
    convolutions, of a batch of 16 or more, and takes longer to begin.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,).

    Returns:
        (..., out).
    """
    if not is_for_onednn(x, weight):
        return nn.functional.linear(x, weight, bias)
    pixels = x.contiguous().view(_BATCH, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # channels last
    out = nn.functional.conv2d(pixels, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def is_for_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `linear` leaves x W^T to oneDNN: a large product of whole batches, where MKL lags."""
    is_float32_on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    is_whole = x.shape[:-1].numel() % _BATCH == 0
    is_large = x.numel() * weight.shape[0] >= _FEWEST_MULTIPLICATIONS
    return _MKL_LAGS and is_float32_on_cpu and is_whole and is_large


def _mkl_lags(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether matrix products are MKL's, on an AMD processor that computes 512 bits at once.

    AMD's Zen 4 has AVX-512 too, but computes it in halves: there MKL keeps up.
    """
    backends = torch.backends
    if not (backends.mkl.is_available() and backends.mkldnn.is_available() and cpuinfo.is_file()):
        return False
    text = cpuinfo.read_text(encoding="utf-8")
    family = re.search(r"^cpu family\s*: (\d+)$", text, re.MULTILINE)
    is_zen_5 = "AuthenticAMD" in text and family is not None and int(family[1]) >= _ZEN_5
    return is_zen_5 and backends.cpu.get_cpu_capability() == "AVX512"


_MKL_LAGS = _mkl_lags()


def exact(x: torch.Tensor) -> torch.Tensor:
    """The same in float32 at least, for sums that are rounded once."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def always(_: nn.Module) -> bool:
    """Whether a layer is changed: it is."""
    return True


_FROZEN: LayerKinds = {
    nn.Conv2d: (FrozenConv2d, _pads_with_zeros),
    nn.Linear: (FrozenLinear, always),
    nn.Dropout: (nn.Identity, always),
    Attention: (FrozenAttention, _is_plain_attention),
    FeedForward: (FrozenFeedForward, lambda layer: type(layer.net[0]) is GEGLU),
    Transformer2DModel: (FrozenTransformer2D, _is_plain_transformer),
    ResnetBlock2D: (FrozenResnetBlock2D, _is_plain),
    Upsample2D: (FrozenUpsample2D, _can_merge),
}
