"""Policies to go on training from, made of others: the soup between the extremes of a warm-up."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch

from ddpo.agents.adapter import Adapter, adapter_of
from ddpo.types import Policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddpo.agents.slots import Agents

logger = logging.getLogger(__name__)

_ROW_NORM = 1 / math.sqrt(3)  # of A's rows in a fresh adapter: uniform in +-1/sqrt(in)


def blend_policies(agents: Agents, parts: Sequence[tuple[Policy, float]]) -> Policy:
    """The policy whose weight update is the weighted sum of the others', to the agents' rank.

    A blend of several adapters has the sum of their ranks; the nearest adapter of the agents' own
    rank replaces it, and the relative error of that is logged. The rows of A get the length
    of a fresh adapter's, so that a learning rate means the same as for any other policy. The
    optimiser starts anew; prompt statistics are those of the largest part.

    Args:
        agents: know the layers.
        parts: policies and their shares, which sum to 1; one alone is returned as it is.
    """
    if len(parts) == 1:
        return parts[0][0]
    whole = Adapter.blend([(adapter_of(agents, policy), share) for policy, share in parts])
    adapter, error = whole.reduced(agents.settings.rank)
    logger.info("a blend of %d policies to rank %d: error %.1e", len(parts), adapter.rank, error)
    initial = agents.initial_policy().adapter
    flat = initial.clone()
    scale = agents.settings.alpha / agents.settings.rank
    for layer, (low_a, low_b) in adapter.matrices.items():
        a, b = agents.matrices(flat, layer)
        norm = low_a.norm(dim=1)
        is_used = norm > 0  # unused rows stay as in a fresh adapter, with B = 0
        a[is_used] = low_a[is_used] * (_ROW_NORM / norm[is_used])[:, None]
        b[:, is_used] = low_b[:, is_used] * norm[is_used] / _ROW_NORM * adapter.scale / scale
    zeros = torch.zeros_like(flat)
    largest, _ = max(parts, key=lambda part: part[1])
    return Policy(
        adapter=flat, exp_avg=zeros, exp_avg_sq=zeros.clone(), step=0, statistics=largest.statistics
    )
