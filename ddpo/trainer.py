"""DDPO for K agents at once: the parts, put together, and one iteration of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ddpo.advantages import advantages
from ddpo.agents import Agents
from ddpo.evaluation import Evaluation, EvaluationSet, evaluate
from ddpo.pipeline import FrozenDiffusion
from ddpo.prompts import draw_prompts, split_prompts
from ddpo.sampler import Sampler
from ddpo.scorer import Scorer, collect
from ddpo.seeding import keyed_seed
from ddpo.types import RewardBatch, UpdateStats
from ddpo.update import Updater

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.schema import Settings
    from ddpo.agents import Policy

    StartBar = Callable[[str, int], Callable[[], object]]  # (name, total) -> call once a step

_UPDATE_KEY = 1  # keys the shuffles of an update apart from the noise of its samples


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Iteration:
    """What one iteration sampled and did."""

    rewards: RewardBatch
    stats: UpdateStats
    num_images: int


class Trainer:
    """Samples, scores and updates all agents, and evaluates policies.

    Args:
        settings: of the run.
        device: where the model and the adapters live.
        start_bar: shows progress.

    Raises:
        UserError: if the model or a reward cannot be loaded.
    """

    def __init__(self, settings: Settings, device: torch.device, start_bar: StartBar) -> None:
        self.settings = settings
        self.start_bar = start_bar
        self.prompts = split_prompts(settings.prompts)
        self.model = FrozenDiffusion.load(settings.pretrained, device)
        self.scorer = Scorer.build(settings.rewards, device)
        _, height, width = self.model.latent_shape
        factor = self.model.pipe.vae_scale_factor
        self.scorer.check(height * factor, width * factor)
        if settings.train.gradient_checkpointing:
            self.model.pipe.unet.enable_gradient_checkpointing()
        self.agents = Agents(
            self.model.unet, settings.evolution.num_agents, settings.adapter, settings.train
        )
        self.sampler = Sampler(self.model, settings.sample)
        if settings.pretrained.offload_text_encoders:
            prompts = self.prompts
            self.model.offload_text_encoders(
                [*prompts.train, *prompts.selection, *prompts.report, ""]
            )
        self.updater = Updater(self.sampler, settings.train)

    def iterate(
        self, generation: int, iteration: int, weights: torch.Tensor, scales: torch.Tensor
    ) -> Iteration:
        """One iteration of DDPO for all agents: sample, score, update.

        All agents draw the same prompts, each with its own noise.

        Args:
            generation: keys the randomness, as does `iteration`.
            iteration: within the generation.
            weights: (K, M), what each agent is improved along.
            scales: (M,) of the objectives, see `advantages`.

        Raises:
            RewardError: if a reward fails.
            FloatingPointError: if a gradient is not finite.
        """
        sample, seed, num_agents = self.settings.sample, self.settings.seed, len(weights)
        key = (seed, generation, iteration)
        draw = generation * self.settings.evolution.iterations_per_generation + iteration
        distinct = draw_prompts(self.prompts.train, sample.prompts_per_iteration, draw, seed)
        texts = [text for text in distinct for _ in range(sample.images_per_prompt)]
        seeds = [keyed_seed(*key, k, i) for k in range(num_agents) for i in range(len(texts))]
        batch = self.sampler.prompt_batch(texts * num_agents, seeds, num_agents)

        on_step = self.start_bar("sampling", self._num_steps(len(texts), num_agents))
        rollout, rewards = collect(self.sampler, self.scorer, self.agents, batch, on_step)
        values, statistics = advantages(
            rewards.values,
            weights,
            [texts] * num_agents,
            self.agents.statistics[:num_agents],
            scales,
            self.settings.advantage,
        )
        self.agents.statistics[:num_agents] = statistics
        stats = self.updater.update(
            self.agents,
            rollout,
            values,
            seeds=[keyed_seed(*key, k, len(texts), _UPDATE_KEY) for k in range(num_agents)],
            on_pass=self.start_bar("updating", self.updater.num_passes(len(texts), num_agents)),
        )
        return Iteration(rewards=rewards, stats=stats, num_images=len(batch.texts))

    def evaluate(
        self, policies: Sequence[Policy], on: EvaluationSet, keep_images: int = 0
    ) -> list[Evaluation]:
        """Judge policies on the same prompts and noise; the agents' slots are overwritten."""
        groups = -(-len(policies) // self.agents.num_agents)
        steps = self._num_steps(len(on.prompts), min(len(policies), self.agents.num_agents))
        on_step = self.start_bar("evaluating", groups * steps)
        return evaluate(policies, on, self.sampler, self.scorer, self.agents, keep_images, on_step)

    def _num_steps(self, samples: int, num_agents: int) -> int:
        """Denoising steps that a bar will count."""
        passes = -(-samples // self.sampler.samples_per_pass(num_agents))
        return passes * len(self.sampler.schedule.timesteps)

    def close(self) -> None:
        """Stop the reward threads."""
        self.scorer.close()
