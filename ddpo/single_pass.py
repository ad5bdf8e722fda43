"""One update per rollout, with gradients that were taken while sampling.

The trained policy is then the one that sampled, so the ratio is 1. The surrogate's gradient becomes
REINFORCE's (Williams 1992), -A grad log p. Only A has to wait for the rewards:

    dL/dtheta_k = -sum_n A_kn G_kn,    G_kn = weighted sum over steps of grad log p, from sampling.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ddpo.devices import to_device
from ddpo.processes import Processes, Share
from ddpo.steps import trained_steps
from ddpo.types import UpdateStats
from ddpo.update import refuse_too_many_skipped, take_step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from config.base import TrainSettings
    from ddpo.agents.slots import Agents
    from ddpo.ddim import Schedule
    from ddpo.types import Rollout


class SinglePassUpdate:
    """The update of `train.single_pass`; see `ddpo.update.Update`.

    Args:
        schedule: of the rollouts.
        settings: of the updates.
        processes: all processes; some may share this one's agents.

    Raises:
        UserError: if no step of the schedule can be trained.
    """

    def __init__(self, schedule: Schedule, settings: TrainSettings, processes: Processes) -> None:
        self.settings = settings
        self.processes = processes
        self.steps = trained_steps(schedule, settings.skip_last_steps)

    def wanted_gradients(self, num_samples: int) -> Mapping[int, float]:
        """All steps that can be trained, each with the weight of a pair in the mean."""
        return dict.fromkeys(self.steps, 1 / (num_samples * len(self.steps)))

    def num_passes(self, num_samples: int, num_agents: int) -> int:  # noqa: ARG002
        """Zero: the sampler has taken all gradients."""
        return 0

    def update(
        self,
        agents: Agents,
        rollout: Rollout,
        advantages: torch.Tensor,
        seeds: Sequence[int],  # noqa: ARG002
        on_pass: Callable[[], object] | None = None,  # noqa: ARG002
        on_step: Callable[[], object] | None = None,
        share: Share | None = None,
        directions: torch.Tensor | None = None,  # noqa: ARG002
    ) -> UpdateStats:
        """Take one optimiser step; see `PpoUpdate.update`.

        Args:
            agents: updated in place.
            rollout: with gradients, as `wanted_gradients` asks.
            advantages: (K, N).
            seeds: not used; nothing is shuffled.
            on_pass: never called.
            on_step: called after the step.
            share: see `PpoUpdate.update`.
            directions: not used.
        """
        assert rollout.gradients is not None
        num_agents, num_steps = rollout.prompts.num_agents, len(rollout.timesteps)
        num_samples = rollout.prompts.samples_per_agent
        share = share or Share.of(0, 1, num_agents=num_agents, num_samples=num_samples)
        gradients = to_device(rollout.gradients, agents.device).unflatten(0, (num_agents, -1))
        advantages = to_device(advantages, agents.device, gradients.dtype)
        agents.zero_grad()
        agents.gradients[:num_agents] = -torch.einsum("kn,knp->kp", advantages, gradients)
        norm = take_step(agents, share, self.processes, self.settings.max_grad_norm)[:num_agents]
        if on_step is not None:
            on_step()
        refuse_too_many_skipped(agents, share)
        loss = -advantages.float().sum(dim=1) / share.num_samples
        self.processes.sum_in_group(loss, share.num_agents)
        norm, zero = norm.cpu(), torch.zeros(num_agents)
        is_skipped = ~norm.isfinite()
        ratio_error = torch.full((num_steps,), math.nan)
        ratio_error[self.steps] = 0
        return UpdateStats(
            means={"loss": loss.cpu(), "approx_kl": zero, "clip_fraction": zero},
            grad_norm=norm.where(~is_skipped, math.nan),
            skipped=is_skipped.to(torch.int64),
            ratio_error=ratio_error,
            excluded_steps=num_steps - len(self.steps),
        )
