"""Which of an agent's samples are worth training on."""

from __future__ import annotations

import torch


def most_extreme(advantages: torch.Tensor, count: int) -> torch.Tensor:
    """The samples with the largest and the smallest advantages, as many of each.

    Samples in the middle say little about what to do more or less of, and cost as much to train:
    DanceGRPO (Xue et al. 2025, arXiv 2505.07818), PODS (Xu et al. 2025, arXiv 2504.13818). One
    more of the largest is taken if `count` is odd. Among equals the order of the samples decides.

    Args:
        advantages: (K, N).
        count: n, how many of each agent's N samples to take.

    Returns:
        (K, n) int64 indices, ascending.

    >>> most_extreme(torch.tensor([[0.1, -2.0, 3.0, 0.0, 1.0]]), 3)
    tensor([[1, 2, 4]])
    """
    order = advantages.argsort(dim=1, stable=True)
    lowest, highest = count // 2, count - count // 2
    chosen = torch.cat([order[:, :lowest], order[:, order.shape[1] - highest :]], dim=1)
    return chosen.sort(dim=1).values
