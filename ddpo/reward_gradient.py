"""Updates along gradients of rewards: DRaFT-K (Clark et al. 2024, section 3), K agents together.

The sampler is differentiable, so an expected reward has a direct gradient. It is taken back through
the last K denoising steps of the rollout and stops there:

    g_0 = d/dx_0 of sum_k (w_k / s_k) f_k(decode(x_0))
    g_t = (d mean_t / d x_t)^T g_{t-1},    the adapters get (d mean_t / d theta)^T g_{t-1}

Here mean_t is the mean of the step from x_t; the added noise does not depend on theta. The backward
pass takes one step at a time, at the sampled states, so memory does not grow with K.

DDPO's policy gradient learns the objectives without a gradient from the same pictures. Its loss is
a mean over the D latent entries and the T trained steps. Multiplied by D T, its gradient is the
gradient of the expected reward and has the same units.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch

from ddpo.devices import is_large, to_device
from ddpo.processes import Share
from ddpo.types import UpdateStats
from ddpo.update import refuse_too_many_skipped, take_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from config.base import Settings
    from ddpo.agents.slots import Agents
    from ddpo.processes import Processes
    from ddpo.rewards.gradients import RewardGradients
    from ddpo.rules.ddpo import Ddpo
    from ddpo.types import Rollout
    from ddpo.update import Lesson, PpoUpdate


class RewardGradientUpdate:
    """One optimiser step per rollout, along the gradients of rewards; see `ddpo.update.Update`.

    Args:
        rule: gives the means of the policy's denoising steps.
        rewards: the objectives as differentiable functions of pictures.
        pairs: learns the objectives without a gradient; None if there are none.
        settings: of the run.
        processes: all processes; some may share this one's agents.
    """

    def __init__(
        self,
        rule: Ddpo,
        rewards: RewardGradients,
        pairs: PpoUpdate | None,
        settings: Settings,
        processes: Processes,
    ) -> None:
        self.rule = rule
        self.rewards = rewards
        self.pairs = pairs
        self.settings = settings.train
        self.processes = processes

    def wanted_gradients(self, num_samples: int) -> None:  # noqa: ARG002
        """None: a rollout is enough."""
        return

    def num_passes(self, num_samples: int, num_agents: int) -> int:
        """See `ddpo.update.Update`."""
        chunks = math.ceil(num_samples / self.samples_per_pass(num_agents))
        others = self.pairs.num_passes(num_samples, num_agents) if self.pairs else 0
        return others + chunks * self.settings.gradient_steps

    def samples_per_pass(self, num_agents: int) -> int:
        """Samples per agent in one UNet pass; the last pass may carry fewer."""
        rows_per_sample = self.rule.sampler.rows_per_sample
        return max(1, self.settings.rows_per_pass // (num_agents * rows_per_sample))

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
        """See `ddpo.update.Update`."""
        assert directions is not None
        num_agents, num_samples = rollout.prompts.num_agents, rollout.prompts.samples_per_agent
        share = share or Share.of(0, 1, num_agents=num_agents, num_samples=num_samples)
        agents.zero_grad()
        # The policy gradient, for objectives without a gradient.
        lesson = None
        if self.pairs is not None:
            lesson = self.pairs.begin(agents, rollout, advantages, seeds, share)
            self.add_policy_gradient(agents, lesson, on_pass)
        # The gradients of rewards, chunk by chunk.
        directions = to_device(directions, agents.device, agents.dtype).flatten(0, 1)
        values = directions.new_zeros(len(directions))
        for rows in self._chunks(num_agents, num_samples, agents.device):
            values[rows] = self.add_reward_gradient(
                agents, rollout, rows, directions[rows], share.num_samples, on_pass
            )
        # One optimiser step on the sum of both.
        norms = take_step(agents, share, self.processes, self.settings.max_grad_norm)
        if on_step is not None:
            on_step()
        refuse_too_many_skipped(agents, share)
        value = values.view(num_agents, -1).sum(dim=1) / share.num_samples
        self.processes.sum_in_group(value, share.num_agents)
        return self._stats(rollout, norms[:num_agents].cpu(), value.float().cpu(), lesson)

    def add_policy_gradient(
        self, agents: Agents, lesson: Lesson, on_pass: Callable[[], object] | None
    ) -> None:
        """Add DDPO's gradient, multiplied by the D T of its means: in units of expected rewards."""
        assert self.pairs is not None
        entries = math.prod(lesson.rollout.latents.shape[2:])
        factor = float(entries * len(self.pairs.steps))
        for pairs in lesson.minibatches:
            self.pairs.add_gradients(agents, lesson, pairs, on_pass, factor)

    def add_reward_gradient(
        self,
        agents: Agents,
        rollout: Rollout,
        rows: torch.Tensor,
        directions: torch.Tensor,
        num_samples: int,
        on_pass: Callable[[], object] | None = None,
    ) -> torch.Tensor:
        """Add the gradient of minus the mean of sum_k d_k f_k, taken through the last steps.

        Args:
            agents: their gradients are added to.
            rollout: the one that was drawn.
            rows: (pairs,) of the rollout, agent-major.
            directions: (pairs, M), d of each picture.
            num_samples: N, over which the mean is taken, in all processes.
            on_pass: called after every UNet pass.

        Returns:
            (pairs,) the sum sum_k d_k f_k of each picture.
        """
        num_agents, num_steps = rollout.prompts.num_agents, len(rollout.timesteps)
        # g_0: from the rewards to the pictures, then through the decoder to the last latents.
        images = rollout.images[rows.to(rollout.images.device)]
        texts = [rollout.prompts.texts[row] for row in rows.tolist()]
        ascent, values = self.rewards.ascent(images, texts, directions)
        loss = agents.loss_scale.scaled(to_device(-ascent / num_samples, rows.device), num_agents)
        gradient = self.through_decoder(rollout.states(rows, -1), loss)
        # g_t: back through the last steps, one UNet pass each. Nothing flows beyond the first.
        first = num_steps - self.settings.gradient_steps
        for step in reversed(range(first, num_steps)):
            before = rollout.states(rows, step).requires_grad_(step > first)
            steps = torch.full_like(rows, step)
            mean = self.rule.means(agents, rollout, rows, steps, before)
            mean.backward(gradient)
            if before.grad is not None:
                gradient = before.grad
            if on_pass is not None:
                on_pass()
        return to_device(values, rows.device, directions.dtype)

    def through_decoder(self, latents: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Take a gradient in pictures (rows, 3, H, W) back to their latents (rows, C, h, w)."""
        size = 1 if is_large(gradient[0, 0].numel()) else len(latents)
        parts = []
        for own, back in zip(latents.split(size), gradient.split(size), strict=True):
            leaf = own.detach().requires_grad_()
            self.rule.sampler.model.decode(leaf).backward(back)
            assert leaf.grad is not None
            parts.append(leaf.grad)
        return torch.cat(parts)

    def _chunks(
        self, num_agents: int, num_samples: int, device: torch.device
    ) -> Iterator[torch.Tensor]:
        """Rows of the rollout in chunks that fill a pass: agent-major, equally many per agent."""
        offset = num_samples * torch.arange(num_agents, device=device)[:, None]
        for samples in torch.arange(num_samples, device=device).split(
            self.samples_per_pass(num_agents)
        ):
            yield (offset + samples).flatten()

    def _stats(
        self, rollout: Rollout, norms: torch.Tensor, value: torch.Tensor, lesson: Lesson | None
    ) -> UpdateStats:
        zero, is_skipped = torch.zeros_like(value), ~norms.isfinite()
        means = {"loss": -value, "approx_kl": zero, "clip_fraction": zero}
        norms = norms.where(~is_skipped, math.nan)
        if lesson is not None:
            lesson.meter.add_step(norms)
            stats = lesson.stats(self.processes)
            means = {**stats.means, "loss": stats.means["loss"] - value}
            return dataclasses.replace(stats, means=means)
        num_steps = len(rollout.timesteps)
        return UpdateStats(
            means=means,
            grad_norm=norms,
            skipped=is_skipped.to(torch.int64),
            ratio_error=torch.full((num_steps,), math.nan),
            excluded_steps=num_steps - self.settings.gradient_steps,
        )
