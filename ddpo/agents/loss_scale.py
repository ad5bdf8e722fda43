"""Loss scaling for half precision: a factor per agent, which the host never waits for.

Gradients that pass through float16 activations vanish below 6e-8. A large factor on the loss lifts
them, and is divided out before they are clipped (Micikevicius et al. 2018, section 3.2). Each agent
has its own factor, so an overflow makes only this agent skip a step.
"""

from __future__ import annotations

import torch

_START = 2.0**16
_GROW_AFTER = 200  # finite gradients in a row


class LossScale:
    """A power of two per agent: halved when its gradient overflows, doubled after 200 that did not.

    Args:
        num_agents: K.
        device: of the agents.
        is_on: False leaves every factor at 1.

    Attributes:
        values: (K,) float32 factors.
    """

    def __init__(self, num_agents: int, device: torch.device, *, is_on: bool) -> None:
        self.is_on = is_on
        self.values = torch.full((num_agents,), _START if is_on else 1.0, device=device)
        self._finite = torch.zeros(num_agents, device=device)

    def scaled(self, losses: torch.Tensor, num_agents: int) -> torch.Tensor:
        """Multiply values (pairs, ...), agent-major, by the factors of the first agents."""
        if not self.is_on:
            return losses
        factors = self.values[:num_agents].repeat_interleave(len(losses) // num_agents)
        return losses * factors.view(-1, *[1] * (losses.ndim - 1))

    def unscale(self, gradients: torch.Tensor) -> None:
        """Divide gradients (K, P) by the factors, in place; with powers of two this is exact."""
        if self.is_on:
            gradients.div_(self.values[:, None])

    def update(self, is_overflow: torch.Tensor) -> None:
        """Adapt the factors, given whether each agent's gradient was not finite (K,)."""
        if not self.is_on:
            return
        finite = torch.where(is_overflow, 0, self._finite + 1)
        grows = finite == _GROW_AFTER
        factor = torch.where(is_overflow, 0.5, torch.where(grows, 2.0, 1.0))
        self.values = self.values * factor
        self._finite = torch.where(grows, 0, finite)

    def reset(self, slot: int) -> None:
        """Start again for one agent, as after a restart of the run."""
        if self.is_on:
            self.values[slot] = _START
            self._finite[slot] = 0
