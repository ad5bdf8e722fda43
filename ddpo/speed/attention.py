"""Attention, transformers and feed-forward networks of a frozen UNet, with fewer trips to memory.

The equations stay as in diffusers (Vaswani et al. 2017):

    attention, per head:  softmax(Q K^T / sqrt(d)) V
    feed-forward:         W_2 (h * gelu(g))  with  (h, g) = W_1 x

Attention leaves out masks and norms that Stable Diffusion does not use. Transformers leave out
copies of images into another memory layout. Feed-forward networks have a hidden layer eight times
as wide as their input: they take few rows at a time, so that it fits a core's cache.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from ddpo.speed.products import constant_linear, is_for_onednn

CACHE_BYTES = 2 * 2**20  # about the cache of one core


class FrozenAttention(Attention):  # type: ignore[misc]
    """Attention without options that are not used here: masks, other norms, a division by one.

    Results are the same bit for bit. Checking for options takes 5 % of a small model's sampling.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> torch.Tensor:
        """(rows, positions, channels) and a context (rows, tokens, width), to the first shape."""
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


def is_plain_attention(layer: Attention) -> bool:
    """Whether `FrozenAttention` computes the same as a layer."""
    extras = layer.group_norm, layer.spatial_norm, layer.norm_q, layer.norm_k, layer.norm_cross
    return not any(extras) and not layer.residual_connection and layer.rescale_output_factor == 1


class FrozenTransformer2D(Transformer2DModel):  # type: ignore[misc]
    """Transformer blocks whose first and last products keep the image's layout in memory.

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
        """Images (rows, channels, h, w) and prompts (rows, tokens, width), to the images' shape."""
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


def is_plain_transformer(layer: Transformer2DModel) -> bool:
    """Whether `FrozenTransformer2D` computes the same as a layer."""
    kind = layer.config.norm_type, layer.config.attention_type
    return bool(layer.is_input_continuous) and kind == ("layer_norm", "default")


def _pixels_projected(
    pixels: torch.Tensor, layer: Any, *, transposed: bool = False
) -> torch.Tensor:
    """A layer's output for (rows, positions, channels).

    Args:
        pixels: in any memory layout.
        layer: linear, perhaps adapted, or a convolution of one pixel.
        transposed: whether the result lies in memory as (rows, channels, positions).

    Returns:
        (rows, positions, out).
    """
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):  # adapted
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
    """A feed-forward network that takes only as many rows at a time as fit a CPU's cache.

    With all rows together, the hidden layer would go through memory. This is for passes without
    gradient. Results are the same up to rounding.
    """

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """(rows, positions, channels) to the same shape."""
        rows, positions, _channels = hidden_states.shape
        products = self.net[0].proj, self.net[2]
        is_adapted = any(not isinstance(each, nn.Linear) for each in products)  # it needs all rows
        if hidden_states.device.type == "cpu" and not (is_adapted or torch.is_grad_enabled()):
            width = products[0].out_features
            rows = max(1, CACHE_BYTES // (positions * width * hidden_states.element_size()))
        forward = super().forward
        parts = [forward(part) for part in hidden_states.split(rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def is_gated(layer: FeedForward) -> bool:
    """Whether `FrozenFeedForward` computes the same as a layer."""
    return type(layer.net[0]) is GEGLU
