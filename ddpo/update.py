"""PPO-style updates: inner epochs over shuffled (sample, step) pairs, all agents at once.

What is minimised is the business of an update rule (`ddpo/rules/`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch

from ddpo.devices import pairs_of, to_device
from ddpo.meter import Meter
from ddpo.minibatches import draw_minibatches, pairs_per_update, passes
from ddpo.processes import Processes, Share
from ddpo.steps import trained_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from config.base import TrainSettings
    from ddpo.agents.slots import Agents
    from ddpo.ddim import Schedule
    from ddpo.rules.rule import UpdateRule
    from ddpo.types import Rollout, UpdateStats

MOST_SKIPPED = 10  # optimiser steps in a row that an agent may skip


class Update(Protocol):
    """A way from a rollout and its advantages to better agents."""

    def wanted_gradients(self, num_samples: int) -> Mapping[int, float] | None:
        """Which steps' gradients the sampler is to take while it draws, see `Sampler.chunks`.

        Args:
            num_samples: of an agent, in all processes.

        Returns:
            What the log-probability of each step counts in the mean over an agent's pairs; None if
            nothing but a rollout is asked for.
        """
        ...

    def num_passes(self, num_samples: int, num_agents: int) -> int:
        """UNet passes of one `update` with N samples per agent (a progress bar's length)."""
        ...

    def update(
        self,
        agents: Agents,
        rollout: Rollout,
        advantages: torch.Tensor,
        seeds: Sequence[int],
        on_pass: Callable[[], object] | None = None,
        on_step: Callable[[], object] | None = None,
        share: Share | None = None,
        directions: torch.Tensor | None = None,
    ) -> UpdateStats:
        """Improve all agents on their own rows of the rollout.

        Args:
            agents: updated in place.
            rollout: of K agents, N samples each.
            advantages: (K, N), of all that is learnt by a policy gradient.
            seeds: K seeds that key each agent's shuffling and choice of steps.
            on_pass: called after every UNet pass (a progress bar).
            on_step: called after every optimiser step.
            share: which of the agents' samples the rollout holds, where processes share them;
                by default all.
            directions: (K, N, M) what a unit of each objective is worth to a picture's agent, of
                all that is learnt by the gradients of rewards.

        Returns:
            Diagnostics per agent.

        Raises:
            FloatingPointError: if too many gradients of an agent in a row are not finite.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lesson:
    """A rollout, ready to be learnt from by a policy gradient.

    Attributes:
        rollout: of K agents, N samples each.
        share: which of the agents' samples the rollout holds.
        advantages: (K * N,) on the device.
        minibatches: (K, pairs, 2) for each optimiser step, see `draw_minibatches`.
        num_pairs: of an agent in a minibatch, in all processes.
        old: (rows, T, ...) measures under the policy that sampled.
        meter: takes in what is learnt.
    """

    rollout: Rollout
    share: Share
    advantages: torch.Tensor
    minibatches: Sequence[torch.Tensor]
    num_pairs: int
    old: torch.Tensor
    meter: Meter

    def stats(self, processes: Processes) -> UpdateStats:
        """What was learnt from all minibatches."""
        return self.meter.stats(processes, self.share, len(self.minibatches) * self.num_pairs)


class PpoUpdate:
    """Takes the optimiser steps of one iteration on minibatches of (sample, step) pairs.

    Args:
        rule: what is minimised.
        schedule: of the rollouts.
        settings: inner epochs, updates per epoch, rows per pass and so on.
        processes: of which some may share this one's agents.
    """

    def __init__(
        self,
        rule: UpdateRule,
        schedule: Schedule,
        settings: TrainSettings,
        processes: Processes,
    ) -> None:
        self.rule = rule
        self.settings = settings
        self.processes = processes
        self._schedule = schedule

    @cached_property
    def steps(self) -> list[int]:
        """That are trained.

        Raises:
            UserError: if none can be.
        """
        return trained_steps(self._schedule, self.settings.max_sensitivity)

    def wanted_gradients(self, num_samples: int) -> None:  # noqa: ARG002
        """None: a rollout is enough."""
        return

    def update(
        self,
        agents: Agents,
        rollout: Rollout,
        advantages: torch.Tensor,
        seeds: Sequence[int],
        on_pass: Callable[[], object] | None = None,
        on_step: Callable[[], object] | None = None,
        share: Share | None = None,
        directions: torch.Tensor | None = None,  # noqa: ARG002
    ) -> UpdateStats:
        """See `Update.update`; `directions` are not needed."""
        lesson = self.begin(agents, rollout, advantages, seeds, share)
        for pairs in lesson.minibatches:  # one optimiser step each
            agents.zero_grad()
            self.add_gradients(agents, lesson, pairs, on_pass)
            norms = take_step(agents, lesson.share, self.processes, self.settings.max_grad_norm)
            lesson.meter.add_step(norms)
            if on_step is not None:
                on_step()
        refuse_too_many_skipped(agents, lesson.share)
        return lesson.stats(self.processes)

    def begin(
        self,
        agents: Agents,
        rollout: Rollout,
        advantages: torch.Tensor,
        seeds: Sequence[int],
        share: Share | None,
    ) -> Lesson:
        """Draw the minibatches, and measure the policy that sampled; see `Update.update`."""
        num_agents, num_samples = rollout.prompts.num_agents, rollout.prompts.samples_per_agent
        share = share or Share.of(0, 1, num_agents=num_agents, num_samples=num_samples)
        # All indices go to the device together: until the statistics are read, nothing waits.
        minibatches = [
            to_device(pairs, agents.device)
            for pairs in draw_minibatches(share, self.steps, seeds, self.settings)
        ]
        old = self.rule.begin(rollout)
        if old is None:
            old = self.measure_all(agents, rollout, minibatches)
        num_steps = len(rollout.timesteps)
        return Lesson(
            rollout=rollout,
            share=share,
            advantages=to_device(advantages, agents.device).flatten(),
            minibatches=minibatches,
            num_pairs=pairs_per_update(self.settings, share.num_samples, len(self.steps)),
            old=old,
            meter=Meter(num_agents, num_steps, num_steps - len(self.steps), agents.device),
        )

    def add_gradients(
        self,
        agents: Agents,
        lesson: Lesson,
        pairs: torch.Tensor,
        on_pass: Callable[[], object] | None = None,
        factor: float = 1.0,
    ) -> None:
        """Add the gradients of a minibatch's mean loss, times a factor, to the agents'."""
        rollout, num_agents = lesson.rollout, lesson.rollout.prompts.num_agents
        per_pass = self.pairs_per_pass(num_agents)
        for rows, steps in passes(pairs, rollout.prompts.samples_per_agent, per_pass):
            old = pairs_of(lesson.old, rows, steps)
            surrogate = self.rule.surrogate(
                agents, rollout, rows, steps, old, lesson.advantages[rows]
            )
            loss = agents.loss_scale.scaled(surrogate.loss, num_agents)
            (factor * loss.sum() / lesson.num_pairs).backward()
            lesson.meter.add(steps, surrogate)
            if on_pass is not None:
                on_pass()

    def num_passes(self, num_samples: int, num_agents: int) -> int:
        """See `Update.num_passes`."""
        pairs = pairs_per_update(self.settings, num_samples, len(self.steps))
        per_update = math.ceil(pairs / self.pairs_per_pass(num_agents))
        return self.settings.num_inner_epochs * self.settings.updates_per_epoch * per_update

    def pairs_per_pass(self, num_agents: int) -> int:
        """(sample, step) pairs of each agent that one UNet pass carries, unless it is the last."""
        per_pair = num_agents * self.rule.rows_per_pair
        return max(1, self.settings.rows_per_pass // per_pair)

    @torch.no_grad()
    def measure_all(
        self, agents: Agents, rollout: Rollout, minibatches: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """(rows, T, ...) measures of all pairs to come, in the training pass's own shape.

        Measures as large as latents are kept where the rollout's latents are.
        """
        num_samples = rollout.prompts.samples_per_agent
        per_pass = self.pairs_per_pass(rollout.prompts.num_agents)
        out = None
        for pairs in minibatches:
            for rows, steps in passes(pairs, num_samples, per_pass):
                measured = self.rule.measure(agents, rollout, rows, steps)
                home = rollout.latents.device if measured.ndim > 1 else measured.device
                if out is None:
                    shape = (len(rollout.latents), len(rollout.timesteps), *measured.shape[1:])
                    out = measured.new_zeros(shape, device=home)
                out[rows.to(home), steps.to(home)] = measured.to(home)
        assert out is not None
        return out


def take_step(
    agents: Agents, share: Share, processes: Processes, max_grad_norm: float
) -> torch.Tensor:
    """One optimiser step on the gradients of all processes of a group; see `Agents.step`."""
    processes.sum_in_group(agents.gradients, share.num_agents)
    return agents.step(max_grad_norm)


def refuse_too_many_skipped(agents: Agents, share: Share) -> None:
    """Give up on an agent that skips step after step.

    Raises:
        FloatingPointError: naming it.
    """
    counts = [int(count) for count in agents.skipped_in_row.tolist()]
    worst = max(counts)
    if worst > MOST_SKIPPED:
        agent = share.agents[counts.index(worst)]
        raise FloatingPointError(
            f"the gradient of agent {agent} was not finite {worst} times in a row; lower "
            "train.learning_rate, or use pretrained.dtype=float32"
        )
