"""AdamW for flat adapters: each has its own clipping, moments and step count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from config.base import TrainSettings
    from ddpo.types import Policy

# As in DDPO's code (kvablack/ddpo-pytorch), and torch's own defaults.
BETAS = (0.9, 0.999)
EPSILON = 1e-8


class AdapterAdam:
    """One AdamW per row of a block of adapters, since rows differ in step count and are reloaded.

    Args:
        adapters: (n, P), updated in place.
        train: learning rate and weight decay.
    """

    def __init__(self, adapters: torch.Tensor, train: TrainSettings) -> None:
        self._adapters = adapters.detach()
        self._rows = [nn.Parameter(row) for row in self._adapters]
        self._optimisers = [
            torch.optim.AdamW(
                [row],
                lr=train.learning_rate,
                betas=BETAS,
                eps=EPSILON,
                weight_decay=train.weight_decay,
                fused=True,  # only the fused one can skip a step without asking the host
            )
            for row in self._rows
        ]

    def step(self, gradients: torch.Tensor, max_grad_norm: float) -> torch.Tensor:
        """Clip each row's gradient (n, P) by its own norm, in place, and take one step.

        A row whose gradient is not finite skips the step: its adapter, moments and step count
        stay as they are. The device decides; the host does not wait for it.

        Returns:
            (n,) gradient norms before clipping; not finite for rows that skipped.
        """
        norms: torch.Tensor = gradients.norm(dim=1)
        is_bad = ~norms.isfinite()
        gradients.mul_((max_grad_norm / (norms + 1e-6)).clamp(max=1.0)[:, None])
        parts = zip(self._optimisers, self._rows, gradients, is_bad.float(), strict=True)
        for optimiser, row, gradient, bad in parts:
            row.grad = gradient
            optimiser.found_inf = bad  # type: ignore[attr-defined]
            optimiser.step()
        # Caches of the adapters compare versions, which a fused optimiser does not raise.
        torch.autograd.graph.increment_version(self._adapters)
        return norms

    def load(self, index: int, policy: Policy) -> None:
        """Continue with a policy's moments and step count."""
        row = self._rows[index]
        state = self._optimisers[index].state[row]
        state["step"] = torch.tensor(float(policy.step), device=row.device)
        state["exp_avg"] = policy.exp_avg.to(row.device, row.dtype, copy=True)
        state["exp_avg_sq"] = policy.exp_avg_sq.to(row.device, row.dtype, copy=True)

    def snapshot(self, index: int) -> dict[str, Any]:
        """Moments and step count, copied to the CPU, under the field names of `Policy`."""
        state = self._optimisers[index].state[self._rows[index]]
        return {
            "exp_avg": state["exp_avg"].cpu().clone(),
            "exp_avg_sq": state["exp_avg_sq"].cpu().clone(),
            "step": int(state["step"]),
        }
