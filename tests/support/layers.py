"""Layers in their plain and their faster forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ddpo.speed.layers import quicken

if TYPE_CHECKING:
    from torch import nn


def quickened(module: nn.Module) -> nn.Module:
    """The module itself, frozen, with faster layers in place."""
    quicken(module.requires_grad_(False).eval())
    return module


def pair(kind: Any, settings: dict[str, Any]) -> tuple[Any, Any]:
    """A random layer and its copy."""
    torch.manual_seed(0)
    plain, copy = kind(**settings), kind(**settings)
    copy.load_state_dict(plain.state_dict())
    return plain, copy
