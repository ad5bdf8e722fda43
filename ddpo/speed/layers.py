"""The table of faster layers: which layers of PyTorch, diffusers and `ddpo/agents/` become what.

A layer is replaced by changing its class in place: weights, names and hooks stay as they are.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from ddpo.agents.lora import StackedLoRALinear
from ddpo.speed.attention import (
    FrozenAttention,
    FrozenFeedForward,
    FrozenTransformer2D,
    is_gated,
    is_plain_attention,
    is_plain_transformer,
)
from ddpo.speed.convolutions import (
    FrozenConv2d,
    FrozenResnetBlock2D,
    is_plain_block,
    pads_with_zeros,
)
from ddpo.speed.lora import FastLoRALinear
from ddpo.speed.products import FrozenLinear
from ddpo.speed.upsampling import FrozenUpsample2D, can_merge

# Kind of layer -> its new class, and a test of which layers of that kind change.
LayerKinds = dict[type[nn.Module], tuple[Any, Any]]


def always(_: nn.Module) -> bool:
    """A test that every layer passes."""
    return True


LAYERS: LayerKinds = {
    nn.Conv2d: (FrozenConv2d, pads_with_zeros),
    nn.Linear: (FrozenLinear, always),
    nn.Dropout: (nn.Identity, always),
    Attention: (FrozenAttention, is_plain_attention),
    FeedForward: (FrozenFeedForward, is_gated),
    Transformer2DModel: (FrozenTransformer2D, is_plain_transformer),
    ResnetBlock2D: (FrozenResnetBlock2D, is_plain_block),
    Upsample2D: (FrozenUpsample2D, can_merge),
    StackedLoRALinear: (FastLoRALinear, always),
}


def quicken(module: nn.Module) -> None:
    """Put the layers of `LAYERS` into a module, in place.

    Args:
        module: in evaluation mode, with frozen weights; its input and its adapters may still
            need gradients.
    """
    for each in change_layers(module, LAYERS):
        if isinstance(each, FrozenUpsample2D):
            each.merge()


def change_layers(module: nn.Module, kinds: LayerKinds) -> list[nn.Module]:
    """Change the class of a module's layers as a table says; returns the changed layers."""
    changed = []
    for each in module.modules():
        kind, suits = kinds.get(type(each), (None, None))
        if kind is not None and suits(each):
            each.__class__ = kind
            changed.append(each)
    return changed
