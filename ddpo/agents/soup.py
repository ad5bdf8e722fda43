"""New starting policies blended from others: the soup of a warm-up's extreme policies."""

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
    """The policy whose weight update is the weighted sum of the parts' updates.

    The exact blend has the sum of the parts' ranks. The nearest adapter of the agents' own rank
    replaces it, and the relative error is logged. The rows of A are scaled to the length they have
    in a fresh adapter, so that the learning rate means the same as for other policies. The
    optimiser state starts empty. Prompt statistics come from the part with the largest share.

    Args:
        agents: with the policies' layers.
        parts: policies and their shares, which sum to 1; a single policy is returned unchanged.

    Raises:
        AdapterError: if the policies belong to different layers.
    """
    if len(parts) == 1:
        return parts[0][0]
    # Blend, then reduce to the agents' rank.
    whole = Adapter.blend([(adapter_of(agents, policy), share) for policy, share in parts])
    adapter, error = whole.reduced(agents.settings.rank)
    logger.info("a blend of %d policies to rank %d: error %.1e", len(parts), adapter.rank, error)
    # Move the lengths of A's rows to B: dW stays the same.
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
