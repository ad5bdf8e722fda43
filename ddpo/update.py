"""PPO-style updates of all agents together: inner epochs over shuffled (sample, step) pairs.

The update rule (`ddpo/rules/`) gives the loss of each pair. Here the pairs are drawn, folded into
UNet passes, and followed by optimiser steps.
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

MOST_SKIPPED = 10  # consecutive optimiser steps that an agent may skip


class Update(Protocol):
    """Improves agents, given a rollout and its advantages."""

    def wanted_gradients(self, num_samples: int) -> Mapping[int, float] | None:
        """Which steps' gradients the sampler takes while it draws; see `Sampler.chunks`.

        Args:
            num_samples: per agent, in all processes.

        Returns:
            step -> weight of its log-probability in the mean over an agent's pairs; None if a plain
            rollout is enough.
        """
        ...

    def num_passes(self, num_samples: int, num_agents: int) -> int:
        """UNet passes of one `update` with N samples per agent: the length of a progress bar."""
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
            advantages: (K, N), of the objectives that a policy gradient learns.
            seeds: K seeds that key each agent's shuffling and choice of steps.
            on_pass: called after every UNet pass (a progress bar).
            on_step: called after every optimiser step.
            share: which of the agents' samples the rollout holds, where processes share them;
                by default all.
            directions: (K, N, M) value of one unit of each objective to a picture's agent, for the
                objectives that gradients of rewards teach.

        Returns:
            Diagnostics per agent.

        Raises:
            FloatingPointError: if too many consecutive gradients of an agent are not finite.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lesson:
    """A rollout, prepared for a policy gradient.

    Attributes:
        rollout: of K agents, N samples each.
        share: which of the agents' samples the rollout holds.
        advantages: (K * N,) on the device.
        minibatches: (K, pairs, 2) for each optimiser step, see `draw_minibatches`.
        num_pairs: pairs per agent and minibatch, in all processes.
        old: (rows, T, ...) measures under the policy that sampled.
        meter: collects the statistics.
    """

    rollout: Rollout
    share: Share
    advantages: torch.Tensor
    minibatches: Sequence[torch.Tensor]
    num_pairs: int
    old: torch.Tensor
    meter: Meter

    def stats(self, processes: Processes) -> UpdateStats:
        """Statistics over all minibatches."""
        return self.meter.stats(processes, self.share, len(self.minibatches) * self.num_pairs)


class PpoUpdate:
    """Takes the optimiser steps of one iteration on minibatches of (sample, step) pairs.

    Args:
        rule: gives the loss of each pair.
        schedule: of the rollouts.
        settings: inner epochs, updates per epoch, rows per pass and so on.
        processes: all processes; some may share this one's agents.
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
        """The steps that are trained.

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
        lesson = self.begin(agents, rollout, advantages, seeds, share)  # what stays fixed
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
        """Draw the minibatches and measure the policy that sampled; see `Update.update`."""
        num_agents, num_samples = rollout.prompts.num_agents, rollout.prompts.samples_per_agent
        share = share or Share.of(0, 1, num_agents=num_agents, num_samples=num_samples)
        # Minibatches. All indices go to the device now, so that no step waits for a copy.
        minibatches = [
            to_device(pairs, agents.device)
            for pairs in draw_minibatches(share, self.steps, seeds, self.settings)
        ]
        # Measures under the policy that sampled: left by sampling, or taken now.
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
        """Add `factor` times the gradient of a minibatch's mean loss to the agents' gradients."""
        rollout, num_agents = lesson.rollout, lesson.rollout.prompts.num_agents
        per_pass = self.pairs_per_pass(num_agents)
        for rows, steps in passes(pairs, rollout.prompts.samples_per_agent, per_pass):
            # Forward: the losses of this pass's pairs, for all agents.
            old = pairs_of(lesson.old, rows, steps)
            surrogate = self.rule.surrogate(
                agents, rollout, rows, steps, old, lesson.advantages[rows]
            )
            # Backward: divided by all pairs of the minibatch, so that passes add up to a mean.
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
        """(sample, step) pairs per agent in one UNet pass; the last pass may carry fewer."""
        per_pair = num_agents * self.rule.rows_per_pair
        return max(1, self.settings.rows_per_pass // per_pair)

    @torch.no_grad()
    def measure_all(
        self, agents: Agents, rollout: Rollout, minibatches: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Measure all pairs of the minibatches, in passes of the same shape as in training.

        Returns:
            (rows, T, ...) measures, 0 for other pairs. Measures as large as latents are kept where
            the rollout's latents are.
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
    """Sum gradients over the processes of a group and take one step; see `Agents.step`."""
    processes.sum_in_group(agents.gradients, share.num_agents)
    return agents.step(max_grad_norm)


def refuse_too_many_skipped(agents: Agents, share: Share) -> None:
    """End the run if an agent has skipped more than `MOST_SKIPPED` consecutive steps.

    Raises:
        FloatingPointError: naming the agent.
    """
    counts = [int(count) for count in agents.skipped_in_row.tolist()]
    worst = max(counts)
    if worst > MOST_SKIPPED:
        agent = share.agents[counts.index(worst)]
        raise FloatingPointError(
            f"the gradient of agent {agent} was not finite {worst} times in a row; lower "
            "train.learning_rate, or use pretrained.dtype=float32"
        )
