"""Statistics of an update, summed on the device and read once at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ddpo.types import UpdateStats

if TYPE_CHECKING:
    from ddpo.processes import Processes, Share
    from ddpo.rules.loss import Surrogate


class Meter:
    """Collects the statistics of one update's passes and optimiser steps.

    Args:
        num_agents: of this process.
        num_steps: T of the rollout.
        num_excluded: how many of these steps are not trained.
        device: of the agents.
    """

    def __init__(
        self, num_agents: int, num_steps: int, num_excluded: int, device: torch.device
    ) -> None:
        self._num_agents = num_agents
        self._num_excluded = num_excluded
        self._sums: dict[str, torch.Tensor] = {}  # metric -> (K,)
        self._step_error = torch.zeros(2, num_steps, device=device)  # sum, count
        self._norms: list[torch.Tensor] = []

    def add(self, steps: torch.Tensor, surrogate: Surrogate) -> None:
        """Add one pass of agent-major pairs."""
        values = torch.stack(list(surrogate.metrics.values()))
        sums = values.unflatten(1, (self._num_agents, -1)).sum(dim=2).float()
        for name, own in zip(surrogate.metrics, sums, strict=True):
            self._sums[name] = self._sums[name] + own if name in self._sums else own
        if not self._norms:  # before the first update
            error = surrogate.log_ratio.abs().float()
            self._step_error.index_add_(1, steps, torch.stack([error, torch.ones_like(error)]))

    def add_step(self, norms: torch.Tensor) -> None:
        """Add the gradient norms (K,) of one optimiser step."""
        self._norms.append(norms[: self._num_agents])

    def stats(self, processes: Processes, share: Share, num_pairs: int) -> UpdateStats:
        """The statistics of the update.

        Args:
            processes: all processes that share the agents' pairs.
            share: of this process.
            num_pairs: per agent, in all processes and optimiser steps.
        """
        sums = torch.stack(list(self._sums.values()))
        processes.sum_in_group(sums, share.num_agents)
        means = dict(zip(self._sums, (sums / num_pairs).cpu(), strict=True))
        processes.sum(self._step_error)
        norms = torch.stack(self._norms).cpu()
        is_taken = norms.isfinite()
        return UpdateStats(
            means=means,
            grad_norm=norms.where(is_taken, 0).sum(dim=0) / is_taken.sum(dim=0),
            skipped=(~is_taken).sum(dim=0),
            ratio_error=(self._step_error[0] / self._step_error[1]).cpu(),
            excluded_steps=self._num_excluded,
        )
