"""Sampling: prompts and seeds in, trajectories with log-probabilities and images out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from ddpo.ddim import gaussian_log_prob, guide, rescale_guidance
from ddpo.devices import to_device
from ddpo.types import Conditioning, PromptBatch, Rollout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from config.base import SampleSettings
    from ddpo.agents.slots import Agents
    from ddpo.model.stable_diffusion import BaseModel


def keyed_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise, row i drawn from its own generator seeded with seeds[i].

    A row depends on its own seed only, so a picture depends neither on the batch size nor on the
    number of agents or processes, and resuming needs no stored random state.

    Returns:
        (len(seeds), *shape) float32 on the CPU.
    """
    generator = torch.Generator()
    return torch.stack(
        [torch.randn(shape, generator=generator.manual_seed(seed)) for seed in seeds]
    )


class Sampler:
    """Draws rollouts with classifier-free guidance; one UNet pass per step carries all agents.

    Args:
        model: the frozen parts.
        settings: steps, guidance, eta, negative prompt, rows per pass.

    Attributes:
        embeds_guidance: whether the UNet reads the guidance scale itself.
    """

    def __init__(self, model: BaseModel, settings: SampleSettings) -> None:
        self.model = model
        self.settings = settings
        self.schedule = model.schedule(settings)
        self.negative = model.encode_negative(settings.negative_prompt)
        self._guidance = model.embed_guidance(settings.guidance_scale)
        self.embeds_guidance = self._guidance is not None

    @property
    def rows_per_sample(self) -> int:
        """UNet rows one sample needs at one step: two with guidance, one without or embedded."""
        return 1 if self.embeds_guidance else self.settings.rows_per_sample

    def samples_per_pass(self, num_agents: int) -> int:
        """Samples per agent in one UNet pass."""
        return max(1, self.settings.rows_per_pass // (num_agents * self.rows_per_sample))

    def prompt_batch(
        self, texts: Sequence[str], seeds: Sequence[int], num_agents: int
    ) -> PromptBatch:
        """Encode prompts into a `PromptBatch` of agent-major rows."""
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        encoded = self.model.encode_prompts(list(place))
        if self._guidance is not None:
            encoded = replace(encoded, guidance=self._guidance.expand(len(encoded), -1))
        return PromptBatch(
            texts=tuple(texts),
            encoded=encoded,
            which=to_device(torch.tensor([place[text] for text in texts]), self.model.device),
            seeds=tuple(seeds),
            num_agents=num_agents,
        )

    def guided(
        self,
        agents: Agents,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        num_agents: int,
    ) -> torch.Tensor:
        """Guided prediction (rows, C, h, w): the policy, in sampling and in training alike.

        Within each agent's block the unconditional rows come first, as in diffusers' pipelines.

        Args:
            agents: whose adapters to use.
            latents: (rows, C, h, w), agent-major.
            timesteps: (rows,).
            conditioning: of the prompts, one row each.
            num_agents: agents among the rows.
        """
        if self.rows_per_sample == 1:
            return agents.predict(latents, timesteps, conditioning, num_agents)
        pair = partial(_per_agent_pair, num_agents=num_agents)
        negative, positive = Conditioning.of_one_length([self.negative, conditioning])
        out = agents.predict(
            pair(latents, latents),
            pair(timesteps, timesteps),
            negative.expand(len(latents)).map(pair, positive),
            num_agents,
        )
        unconditional, conditional = out.unflatten(0, (num_agents, 2, -1)).unbind(1)
        guided = guide(unconditional, conditional, self.settings.guidance_scale).flatten(0, 1)
        if rescale := self.settings.guidance_rescale:
            return rescale_guidance(guided, conditional.flatten(0, 1), rescale)
        return guided

    def chunks(
        self,
        agents: Agents,
        prompts: PromptBatch,
        on_step: Callable[[], object] | None = None,
        wanted: Mapping[int, float] | None = None,
    ) -> Iterator[Rollout]:
        """Rollouts of as many samples per agent as fit `rows_per_pass`, one after another.

        Args:
            agents: the first `prompts.num_agents` slots are sampled.
            prompts: what to draw.
            on_step: called after every denoising step (a progress bar).
            wanted: the weight of each step whose gradient is taken on the way, for
                `Rollout.gradients`; by default none is.
        """
        for chunk in prompts.chunks(self.samples_per_pass(prompts.num_agents)):
            if wanted is None:
                with torch.inference_mode():
                    rollout = self.denoise(agents, chunk, on_step)
            else:
                with (
                    torch.no_grad(),
                    agents.copies(chunk.num_agents, chunk.samples_per_agent) as copies,
                ):
                    rollout = self.denoise(agents, chunk, on_step, wanted)
                    rollout = replace(rollout, gradients=copies.grad)
            yield rollout

    def denoise(
        self,
        agents: Agents,
        prompts: PromptBatch,
        on_step: Callable[[], object] | None = None,
        wanted: Mapping[int, float] | None = None,
    ) -> Rollout:
        """One chunk. With `wanted` every sample of a pass has a copy of its agent's adapter."""
        schedule = self.schedule
        rows, num_steps = len(prompts.texts), len(schedule.timesteps)
        # Noise of the start and of every step; adapters, or copies of them, for the rows.
        noise = keyed_noise(prompts.seeds, (num_steps + 1, *self.model.latent_shape))
        noise = to_device(noise, self.model.device, agents.dtype)
        conditioning = prompts.conditioning
        num_adapters = prompts.num_agents if wanted is None else rows
        weights = wanted or {}

        def step(i: int, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """The latents after step i and their log-probability, free of the step's graph."""
            t, sigma = schedule.timesteps[i], schedule.sigma[i]
            with torch.set_grad_enabled(i in weights):
                out = self.guided(agents, before, t.expand(rows), conditioning, num_adapters)
                mean = schedule.mean(out, before, i)
                after = mean.detach() + sigma * noise[:, i + 1]
                log_prob = gaussian_log_prob(after, mean, sigma)
                if i in weights:
                    total = agents.loss_scale.scaled(weights[i] * log_prob, prompts.num_agents)
                    total.sum().backward()
            return after, log_prob.detach()

        # The chain of steps, from noise to the last latents.
        latents, log_probs = [noise[:, 0] * schedule.first_std], []
        for i in range(num_steps):
            after, log_prob = step(i, latents[-1])
            latents.append(after)
            log_probs.append(log_prob)
            if on_step is not None:
                on_step()
        return Rollout(
            prompts=prompts,
            schedule=schedule,
            latents=torch.stack(latents, dim=1),
            log_probs=torch.stack(log_probs, dim=1),
            images=self.model.decode(latents[-1]),
        )


def _per_agent_pair(first: torch.Tensor, second: torch.Tensor, num_agents: int) -> torch.Tensor:
    """Interleave two agent-major tensors so that each agent's block is [first, second]."""
    pair = (first.unflatten(0, (num_agents, -1)), second.unflatten(0, (num_agents, -1)))
    return torch.cat(pair, dim=1).flatten(0, 1)
