"""Adapters for the tiny pipelines."""

from __future__ import annotations

import torch

from ddpo.agents.adapter import Adapter
from tests.support.pipelines import make_tiny_pipe

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def random_adapter(seed: int, rank: int = 4, alpha: float = 6.0, kind: str = "sd1") -> Adapter:
    """An adapter for a tiny model that changes its pictures visibly."""
    generator = torch.Generator().manual_seed(seed)
    matrices = {}
    for name, module in make_tiny_pipe(kind).unet.named_modules():
        if name.endswith(TARGETS) and isinstance(module, torch.nn.Linear):
            a = torch.randn(rank, module.in_features, generator=generator)
            b = 0.1 * torch.randn(module.out_features, rank, generator=generator)
            matrices[name] = (a, b)
    return Adapter(matrices=matrices, rank=rank, alpha=alpha, target_modules=TARGETS)
