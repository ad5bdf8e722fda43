"""PPO-style updates: inner epochs over shuffled (sample, step) pairs, all agents at once.

What is minimised is the business of an update rule (`ddpo/rules/rules.py`). Given the rollout, the
loss of each (sample, step) pair is independent of every other, so pairs are folded into UNet passes
of any number of rows; the result does not depend on that number.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from functools import partial
from typing import TYPE_CHECKING

import torch

from config.settings.errors import UserError
from config.settings.schema import trained_samples
from ddpo.best_of import most_extreme
from ddpo.devices import pairs_of, to_device
from ddpo.processes import Processes, Share
from ddpo.rules.rules import UPDATE_RULES
from ddpo.steps import step_weights, trained_steps
from ddpo.types import UpdateStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from config.settings.schema import Settings
    from ddpo.agents.slots import Agents
    from ddpo.ddim import Schedule
    from ddpo.rules.loss import Surrogate
    from ddpo.sampler import Sampler
    from ddpo.types import Rollout

logger = logging.getLogger(__name__)


class Updater:
    """Takes the optimiser steps of one iteration.

    DDPO's old log-probabilities are those of sampling ("never"), recomputed in the training pass's
    own shape before the first update ("always"), or recomputed once rounding has pushed the ratio
    before the first update off 1 by more than a quarter of the clip range ("auto").

    With `kl_coef` above 0 the loss of a pair is the rule's plus `kl_coef` times the KL divergence
    of its Gaussian from the base model's (DPOK: Fan et al. 2023, section 4.2), which takes a
    second UNet pass without gradient and without adapters. All of it is multiplied by the weight of
    the pair's step (`step_weights`).

    With `single_pass` the gradients of the log-probabilities come with the rollout. The policy that
    is trained is then the one that sampled: the ratio is 1, and the surrogate's gradient is
    REINFORCE's (Williams 1992), -A grad log p, in which only A had to wait for the rewards.

    Args:
        sampler: supplies the guided prediction.
        settings: of the run: the rule, inner epochs, updates per epoch, rows per pass and so on.
        processes: of which some may share this one's agents; by default none do.

    Raises:
        UserError: if no step of the sampler's schedule can be trained.
    """

    def __init__(
        self, sampler: Sampler, settings: Settings, processes: Processes | None = None
    ) -> None:
        self.sampler = sampler
        self.rule = UPDATE_RULES[settings.train.update_rule](sampler, settings)
        self.settings = settings.train
        self.processes = processes or Processes.alone(sampler.model.device)
        schedule, skip_last = sampler.schedule, self.settings.skip_last_steps
        steps = trained_steps(schedule, skip_last)
        if not steps:
            raise UserError(
                f"none of the {len(schedule.timesteps)} denoising steps of this model can be "
                "trained: what train.skip_last_steps leaves has no noise; raise sample.num_steps"
            )
        # Not those of a rollout's window: a step counts the same wherever the window lies.
        self.step_weights = step_weights(schedule, skip_last, self.settings.step_weighting)
        num_steps = settings.sample.noisy_steps or len(steps)
        self.steps_per_sample = max(1, round(self.settings.timestep_fraction * num_steps))
        self.recompute = self.settings.recompute_log_probs == "always"

    def update(
        self,
        agents: Agents,
        rollout: Rollout,
        advantages: torch.Tensor,
        seeds: Sequence[int],
        on_pass: Callable[[], object] | None = None,
        on_update: Callable[[], object] | None = None,
        share: Share | None = None,
    ) -> UpdateStats:
        """Improve all agents on their own rows of the rollout.

        Args:
            agents: updated in place.
            rollout: of K agents, N samples each.
            advantages: (K, N).
            seeds: K seeds that key each agent's shuffling and choice of steps.
            on_pass: called after every UNet pass (a progress bar).
            on_update: called after every optimiser step.
            share: which of the agents' samples the rollout holds, where processes share them;
                by default all.

        Returns:
            Diagnostics per agent.

        Raises:
            FloatingPointError: if too many gradients of an agent in a row are not finite.
        """
        num_agents, samples = rollout.prompts.num_agents, rollout.prompts.samples_per_agent
        share = share or Share.of(0, 1, num_agents=num_agents, num_samples=samples)
        if rollout.gradients is not None:
            return self._update_in_single_pass(agents, rollout, advantages, share, on_update)
        device = agents.device
        # All indices go to the device at once: from here on only the last lines wait for it.
        pick = self._pick(advantages, share)
        if pick is not None:  # from here on, those are all the samples there are
            num = pick.shape[1]
            share = dataclasses.replace(share, samples=range(num), num_samples=num)
        steps = torch.tensor(trained_steps(rollout.schedule, self.settings.skip_last_steps))
        minibatches = [
            to_device(_picked(pairs, pick), device)
            for pairs in self._minibatches(share, steps, seeds)
        ]
        advantages = to_device(advantages, device)
        pairs_per_update = (
            share.num_samples // self.settings.updates_per_epoch * self.steps_per_sample
        )
        old = self.rule.begin(rollout)
        if is_measured := old is None or self.recompute:
            old = self._measures(agents, rollout, minibatches)
        meter = _Meter(num_agents, len(rollout.timesteps), agents.device)
        differentiate = partial(
            self._differentiate, agents, rollout, advantages, pairs_per_update, meter, on_pass
        )
        norms, num_repeated = [], 0
        for number, pairs in enumerate(minibatches):
            differentiate(pairs, old)
            if number == 0:
                ratio_error = meter.ratio_error(self.processes)
                if not is_measured and self._must_recompute(ratio_error):
                    is_measured, num_repeated = True, pairs_per_update
                    old = self._measures(agents, rollout, minibatches)
                    meter.forget()
                    differentiate(pairs, old)
                    ratio_error = meter.ratio_error(self.processes)
            meter.is_before_first_update = False
            norms.append(self._step(agents, share, on_update)[:num_agents])
        self._check_skipped(agents, share)
        num_pairs = len(minibatches) * pairs_per_update
        passes_per_gradient = 1 + (self.settings.kl_coef > 0)
        num_passes = num_pairs * (is_measured + passes_per_gradient)
        num_passes += num_repeated * passes_per_gradient
        grad_norms = torch.stack(norms).cpu()
        is_taken = grad_norms.isfinite()
        means = (meter.sums(self.processes, share.num_agents) / num_pairs).cpu()
        return UpdateStats(
            loss=means[0],
            approx_kl=means[1],
            clip_fraction=means[2],
            kl_to_base=means[3] if self.settings.kl_coef > 0 else None,
            grad_norm=grad_norms.where(is_taken, 0).sum(dim=0) / is_taken.sum(dim=0),
            skipped=(~is_taken).sum(dim=0),
            ratio_error=ratio_error.cpu(),
            excluded_steps=len(rollout.timesteps) - len(steps),
            unet_rows=num_passes * num_agents * self.rule.rows_per_pair,
        )

    def trained(self, schedule: Schedule, num_samples: int) -> dict[int, float] | None:
        """For `Sampler.chunks`: the steps whose gradients sampling is to take, if any.

        Args:
            schedule: of the rollout to come.
            num_samples: of an agent, in all processes.

        Returns:
            What the log-probability of each step counts in the mean over an agent's pairs.
        """
        if not self.settings.single_pass:
            return None
        weights, num_pairs = self.step_weights.tolist(), num_samples * self.steps_per_sample
        steps = trained_steps(schedule, self.settings.skip_last_steps)
        return {step: weights[step] / num_pairs for step in steps}

    def _update_in_single_pass(
        self,
        agents: Agents,
        rollout: Rollout,
        advantages: torch.Tensor,
        share: Share,
        on_update: Callable[[], object] | None,
    ) -> UpdateStats:
        """Take the one optimiser step whose gradients have come with the rollout."""
        assert rollout.gradients is not None
        num_agents, num_steps = rollout.prompts.num_agents, len(rollout.timesteps)
        gradients = to_device(rollout.gradients, agents.device).unflatten(0, (num_agents, -1))
        advantages = to_device(advantages, agents.device, gradients.dtype)
        agents.zero_grad()
        agents.gradients[:num_agents] = -torch.einsum("kn,knp->kp", advantages, gradients)
        norm = self._step(agents, share, on_update)[:num_agents]
        self._check_skipped(agents, share)
        loss = -advantages.float().sum(dim=1) / share.num_samples
        self.processes.sum_in_group(loss, share.num_agents)
        norm, zero = norm.cpu(), torch.zeros(num_agents)
        is_skipped = ~norm.isfinite()
        steps = trained_steps(rollout.schedule, self.settings.skip_last_steps)
        ratio_error = torch.full((num_steps,), math.nan)
        ratio_error[steps] = 0
        return UpdateStats(
            loss=loss.cpu(),
            approx_kl=zero,
            clip_fraction=zero,
            grad_norm=norm.where(~is_skipped, math.nan),
            skipped=is_skipped.to(torch.int64),
            ratio_error=ratio_error,
            excluded_steps=num_steps - len(steps),
            unet_rows=share.num_samples * len(steps) * num_agents * self.rule.rows_per_pair,
        )

    def _step(
        self, agents: Agents, share: Share, on_update: Callable[[], object] | None
    ) -> torch.Tensor:
        """One optimiser step on the gradients of all processes of a group; see `Agents.step`."""
        self.processes.sum_in_group(agents.gradients, share.num_agents)
        norms = agents.step(self.settings.max_grad_norm)
        if on_update is not None:
            on_update()
        return norms

    def _pick(self, advantages: torch.Tensor, share: Share) -> torch.Tensor | None:
        """(K, n) samples of each agent that `best_of` leaves to train; None for all of them."""
        num = trained_samples(self.settings.best_of, share.num_samples)
        if num == share.num_samples:
            return None
        # Processes that shared an agent would hold uneven parts of this: `process_problems`.
        assert len(share.samples) == share.num_samples
        return most_extreme(advantages.cpu(), num)

    def _check_skipped(self, agents: Agents, share: Share) -> None:
        """Give up on an agent that skips step after step."""
        counts = [int(count) for count in agents.skipped_in_row.tolist()]
        worst = max(counts)
        if worst > self.settings.max_skipped_steps:
            agent = share.agents[counts.index(worst)]
            raise FloatingPointError(
                f"the gradient of agent {agent} was not finite {worst} times in a row, over "
                f"train.max_skipped_steps={self.settings.max_skipped_steps}; lower "
                "train.learning_rate, or use pretrained.dtype=float32"
            )

    def num_passes(self, samples: int, num_agents: int) -> int:
        """UNet passes of one `update` with N samples per agent (a progress bar's length)."""
        settings = self.settings
        if settings.single_pass:
            return 0
        trained = trained_samples(settings.best_of, samples)
        pairs = trained // settings.updates_per_epoch * self.steps_per_sample
        passes = math.ceil(pairs / self.pairs_per_pass(num_agents))
        return settings.num_inner_epochs * settings.updates_per_epoch * passes

    def pairs_per_pass(self, num_agents: int) -> int:
        """(sample, step) pairs of each agent that one UNet pass carries, unless it is the last."""
        per_pair = num_agents * self.rule.rows_per_pair
        return max(1, self.settings.rows_per_pass // per_pair)

    def trial_pass(self, agents: Agents) -> torch.Tensor:
        """A prediction (rows, C, h, w) from zeros, in the shape of training's passes."""
        num_agents, model = agents.num_agents, self.sampler.model
        pairs = self.pairs_per_pass(num_agents)
        rows = num_agents * pairs * self.rule.rows_per_pair
        latents = torch.zeros(rows, *model.latent_shape, device=model.device)
        timesteps = self.sampler.schedule.timesteps[:1].repeat(rows)
        conditioning = self.sampler.negative[[0] * rows]
        if not self.settings.single_pass:
            return agents.predict(latents, timesteps, conditioning, num_agents)
        with agents.copies(num_agents, pairs):
            return agents.predict(latents, timesteps, conditioning, num_agents * pairs)

    def _minibatches(
        self, share: Share, steps: torch.Tensor, seeds: Sequence[int]
    ) -> Iterator[torch.Tensor]:
        """(K, pairs, 2) indices (sample of the rollout, one of steps); a tensor per optimiser step.

        All samples of an agent are shuffled, whatever share of them is here. Of every
        `updates_per_epoch` consecutive samples each goes to another minibatch: so an even share of
        the samples holds an even share of every minibatch.
        """
        updates, first = self.settings.updates_per_epoch, share.samples.start
        blocks = slice(first // updates, share.samples.stop // updates)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for _ in range(self.settings.num_inner_epochs):
            epoch = torch.stack(
                [self._shuffled_pairs(share.num_samples, steps, g) for g in generators]
            )
            own = epoch[:, blocks] - torch.tensor([first, 0])
            yield from (part.flatten(1, 2) for part in own.unbind(dim=2))

    def _shuffled_pairs(
        self, samples: int, steps: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """(blocks, updates, steps_per_sample, 2): samples shuffled in blocks, and random steps."""
        updates = self.settings.updates_per_epoch
        order = torch.rand(samples // updates, updates, generator=generator).argsort(dim=1)
        order += torch.arange(0, samples, updates)[:, None]
        draws = torch.rand(*order.shape, len(steps), generator=generator)
        drawn = steps[draws.argsort(dim=-1)[..., : self.steps_per_sample]]
        return torch.stack([order[..., None].expand_as(drawn), drawn], dim=-1)

    def _differentiate(
        self,
        agents: Agents,
        rollout: Rollout,
        advantages: torch.Tensor,
        pairs_per_update: int,
        meter: _Meter,
        on_pass: Callable[[], object] | None,
        pairs: torch.Tensor,
        old: torch.Tensor,
    ) -> None:
        """The gradient of one minibatch's share: per agent the sum over its pairs, divided by all.

        Args:
            agents: whose gradients are set.
            rollout: of this process's samples.
            advantages: (K, N).
            pairs_per_update: of each agent, in all processes.
            meter: takes in the diagnostics.
            on_pass: called after every UNet pass.
            pairs: (K, pairs, 2) of this process.
            old: (rows, T, ...) measures under the policy that sampled.
        """
        agents.zero_grad()
        num_agents, flat_advantages = rollout.prompts.num_agents, advantages.flatten()
        for rows, steps in self._passes(rollout, pairs):
            if self.settings.kl_coef > 0:
                # Before the policy's pass: gradient checkpointing repeats the latest one.
                with torch.no_grad(), agents.base_model():
                    base = self.rule.predict(agents, rollout, rows, steps)
            prediction = self.rule.predict(agents, rollout, rows, steps)
            measured = self.rule.measure(prediction, rollout, rows, steps)
            surrogate = self.rule.surrogate(
                measured, pairs_of(old, rows, steps), flat_advantages[rows]
            )
            loss, kl = surrogate.loss, torch.zeros_like(surrogate.loss)
            if self.settings.kl_coef > 0:
                kl = self.rule.divergence(prediction, base, rollout, steps)
                loss = loss + self.settings.kl_coef * kl
            loss = agents.loss_scale.scaled(self.step_weights[steps] * loss, num_agents)
            (loss.sum() / pairs_per_update).backward()
            meter.add(steps, surrogate, kl)
            if on_pass is not None:
                on_pass()

    def _passes(
        self, rollout: Rollout, pairs: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Agent-major rollout rows and steps, as many at a time as one UNet pass may carry."""
        num_agents, n = rollout.prompts.num_agents, rollout.prompts.samples_per_agent
        offset = torch.arange(num_agents, device=pairs.device)[:, None] * n
        for part in pairs.split(self.pairs_per_pass(num_agents), dim=1):
            yield (part[..., 0] + offset).flatten(), part[..., 1].flatten()

    @torch.no_grad()
    def _measures(
        self, agents: Agents, rollout: Rollout, minibatches: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """(rows, T, ...) measures of all pairs to come, in the training pass's own shape.

        Measures as large as latents are kept where the rollout's latents are.
        """
        out = None
        for rows, steps in (p for pairs in minibatches for p in self._passes(rollout, pairs)):
            prediction = self.rule.predict(agents, rollout, rows, steps)
            measured = self.rule.measure(prediction, rollout, rows, steps)
            home = rollout.latents.device if measured.ndim > 1 else measured.device
            if out is None:
                shape = (len(rollout.latents), len(rollout.timesteps), *measured.shape[1:])
                out = measured.new_zeros(shape, device=home)
            out[rows.to(home), steps.to(home)] = measured.to(home)
        assert out is not None
        return out

    def _must_recompute(self, ratio_error: torch.Tensor) -> bool:
        """Whether rounding between sampling and training has come too near the clip range."""
        if self.settings.recompute_log_probs == "never":
            return False
        worst = float(ratio_error.nan_to_num(0, posinf=0).max())
        self.recompute = worst > self.rule.clip_range / 4
        if self.recompute:
            logger.warning(
                "the log-ratio before the first update is %.2g, over a quarter of the clip range "
                "%.2g: old log-probabilities are recomputed from now on",
                worst,
                self.rule.clip_range,
            )
        return self.recompute


def _picked(pairs: torch.Tensor, pick: torch.Tensor | None) -> torch.Tensor:
    """Pairs (K, pairs, 2) of the n samples picked, as pairs of the rollout's samples."""
    if pick is None:
        return pairs
    return torch.stack([pick.gather(1, pairs[..., 0]), pairs[..., 1]], dim=-1)


class _Meter:
    """Sums per agent and per step, kept on the device until asked for."""

    def __init__(self, num_agents: int, num_steps: int, device: torch.device) -> None:
        self.num_agents = num_agents
        self.is_before_first_update = True
        # loss, approx_kl, clip_fraction, kl_to_base
        self._sums = torch.zeros(4, num_agents, device=device)
        self._step_error = torch.zeros(2, num_steps, device=device)  # sum, count

    def forget(self) -> None:
        """Begin anew."""
        self._sums.zero_()
        self._step_error.zero_()

    def add(self, steps: torch.Tensor, surrogate: Surrogate, kl_to_base: torch.Tensor) -> None:
        """Take in one pass of agent-major pairs."""
        loss, log_ratio = surrogate.loss.detach(), surrogate.log_ratio
        clipped = surrogate.is_clipped.to(loss.dtype)
        values = torch.stack([loss, 0.5 * log_ratio.square(), clipped, kl_to_base.detach()])
        self._sums += values.unflatten(1, (self.num_agents, -1)).sum(dim=2)
        if self.is_before_first_update:
            error = log_ratio.abs().float()
            self._step_error.index_add_(1, steps, torch.stack([error, torch.ones_like(error)]))

    def sums(self, processes: Processes, num_agents: int) -> torch.Tensor:
        """(4, K) sums of the diagnostics over the pairs of all processes, which have so many."""
        processes.sum_in_group(self._sums, num_agents)
        return self._sums

    def ratio_error(self, processes: Processes) -> torch.Tensor:
        """(T,) mean absolute log-ratio of the first minibatch; NaN for steps without pairs."""
        total = self._step_error.clone()
        processes.sum(total)
        return total[0] / total[1]
