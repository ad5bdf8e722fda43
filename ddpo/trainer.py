"""DDPO for K agents at once: the parts, put together, and one iteration of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from config.settings.errors import StoppedError
from ddpo.advantages import advantages
from ddpo.agents.conditioned import make_agents
from ddpo.collect import collect
from ddpo.cost.stopwatch import Stopwatch
from ddpo.evaluation import evaluate
from ddpo.model.stable_diffusion import FrozenDiffusion
from ddpo.prompts import draw_prompts, split_prompts
from ddpo.rewards.collapse import CollapseWatch
from ddpo.rewards.guards import Guards
from ddpo.rewards.scorer import RewardError, Scorer
from ddpo.sampler import Sampler
from ddpo.seeding import keyed_seed
from ddpo.speed.allocator import keep_freed_memory
from ddpo.speed.compiling import compile_unet
from ddpo.steps import noise_windows
from ddpo.types import Evaluation, EvaluationSet, RewardBatch, UpdateStats
from ddpo.update import Updater

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.settings.schema import Settings
    from ddpo.model.stable_diffusion import BaseModel
    from ddpo.processes import Processes
    from ddpo.prompts import PromptSplit
    from ddpo.types import Policy

    StartBar = Callable[[str, int], Callable[[], object]]  # (name, total) -> call once a step

_UPDATE_KEY = 1  # keys the shuffles of an update apart from the noise of its samples
_WEIGHTS_KEY = 2  # keys the weights that an iteration draws
_WINDOW_KEY = 3  # keys which steps of an iteration are noisy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Iteration:
    """What one iteration sampled and did."""

    rewards: RewardBatch
    stats: UpdateStats
    num_images: int
    num_collapsed: int

    def metrics(self) -> dict[str, float]:
        """Of rewards and updates, and how many agents drew the same thing over and over."""
        collapsed = {"reward/collapsed_agents": self.num_collapsed}
        return {**self.rewards.metrics(), **collapsed, **self.stats.metrics()}


class Trainer:
    """Samples, scores and updates all agents, and evaluates policies.

    Args:
        settings: of the run.
        processes: that share the work; this one has the model and its agents on its device.
        start_bar: shows progress.
        check_stop: called where nothing is half done, between denoising steps and after optimiser
            steps; raises StoppedError to end the run there.
        model: the base model; by default that of `settings.pretrained` is loaded.

    Raises:
        UserError: if the model or a reward cannot be loaded.
    """

    def __init__(
        self,
        settings: Settings,
        processes: Processes,
        start_bar: StartBar,
        check_stop: Callable[[], object] = lambda: None,
        model: BaseModel | None = None,
    ) -> None:
        if processes.device.type == "cpu":
            keep_freed_memory()
        self.settings = settings
        self.processes = processes
        self.start_bar = start_bar
        self.check_stop = check_stop
        self._collapse = CollapseWatch()
        self.prompts = split_prompts(settings.prompts)
        self.model = model or _load_model(settings, self.prompts, processes.device)
        self.scorer = Scorer.build(settings.rewards, processes.device)
        self.guards = Guards.build(settings, processes.device)
        examples = (self.prompts.train[0], self.prompts.selection[0], self.prompts.report[0])
        self.scorer.check(*self.model.image_size, examples)
        if self.guards is not None:
            self.guards.check(*self.model.image_size, examples)
        slots = max(len(processes.share(num, 1).agents) for num in settings.task_counts)
        self.agents = make_agents(self.model.unet, slots, settings, processes)
        self.sampler = Sampler(self.model, settings.training_sample)
        self.evaluation_sampler = self.sampler
        if settings.evaluation_sample != settings.training_sample:
            self.evaluation_sampler = Sampler(self.model, settings.evaluation_sample)
        train, noisy_steps = settings.train, settings.sample.noisy_steps
        self._schedules = noise_windows(self.sampler.schedule, train.skip_last_steps, noisy_steps)
        self.updater = Updater(self.sampler, settings, processes)
        self.work = Stopwatch()  # drawing, scoring and updating, against all else of a run
        if settings.pretrained.compile:
            trial = partial(self.updater.trial_pass, self.agents)
            compile_unet(self.agents, settings.pretrained.compile, trial)

    def load(self, policies: Sequence[Policy], weights: torch.Tensor) -> None:
        """Put K policies, to be improved along weights (K, M), into slots, wherever they are."""
        self._num_loaded = len(policies)
        own = self.processes.share(len(policies), 1).agents
        self.agents.load_tasks(policies, weights, own)

    def snapshot(self) -> list[Policy]:
        """What the K policies loaded have become; the same in every process."""
        groups = self.processes.each_group(self.agents.snapshot_tasks(), self._num_loaded)
        return [policy for group in groups for policy in group]

    def iterate(
        self, generation: int, iteration: int, weights: torch.Tensor, scales: torch.Tensor
    ) -> Iteration:
        """One iteration of DDPO for all agents: sample, score, update.

        All agents draw the same prompts, each with its own noise, in the same steps.

        Args:
            generation: keys the randomness, as does `iteration`.
            iteration: within the generation.
            weights: (K, M) of the tasks, what each agent is improved along (see `Agents.aim`).
            scales: (M,) of the objectives, see `advantages`.

        Raises:
            RewardError: if a reward fails.
            FloatingPointError: if too many gradients of an agent in a row are not finite.
            StoppedError: if the run was asked to stop.
        """
        sample, seed, num_agents = self.settings.sample, self.settings.seed, len(weights)
        key = (seed, generation, iteration)
        weights = self.agents.aim(weights, keyed_seed(*key, _WEIGHTS_KEY))
        draw = generation * self.settings.evolution.iterations_per_generation + iteration
        drawn = draw_prompts(self.prompts.train, sample.prompts_per_iteration, draw, seed)
        texts = [text for text in drawn for _ in range(sample.images_per_prompt)]
        share = self.processes.share(
            num_agents, len(texts), block=self.settings.train.updates_per_epoch
        )
        agents, samples = share.agents, share.samples
        batch = self.sampler.prompt_batch(
            [texts[i] for _ in agents for i in samples],
            [keyed_seed(*key, k, i) for k in agents for i in samples],
            len(agents),
        )
        schedule = self._schedules[keyed_seed(*key, _WINDOW_KEY) % len(self._schedules)]
        num_steps = _num_steps(self.sampler, len(samples), len(agents))
        on_step = self._denoising_bar("sampling", num_steps)
        with self.work, self.processes.together(RewardError, StoppedError, torch.OutOfMemoryError):
            rollout, own_rewards = collect(
                self.sampler,
                self.scorer,
                self.agents,
                batch,
                on_step,
                schedule,
                self.updater.trained(schedule, len(texts)),
            )
        rewards = dataclasses.replace(
            own_rewards, values=self.processes.join(own_rewards.values, num_agents)
        )
        self.scorer.refuse_too_many_missing(rewards.values)
        num_collapsed = self._collapse.look(generation, rewards, texts, rollout, agents)
        own = slice(agents.start, agents.stop)
        values, statistics = advantages(
            rewards.values[own],
            weights[own],
            [texts] * len(agents),
            self.agents.statistics[: len(agents)],
            scales,
            self.settings.advantage,
        )
        self.agents.statistics[: len(agents)] = statistics
        with self.work, self.processes.together(FloatingPointError, StoppedError):
            stats = self.updater.update(
                self.agents,
                rollout,
                values[:, samples.start : samples.stop],
                seeds=[keyed_seed(*key, k, len(texts), _UPDATE_KEY) for k in agents],
                on_pass=self.start_bar(
                    "updating", self.updater.num_passes(len(samples), len(agents))
                ),
                # the others wait for this one's gradients, so that it may not leave in between
                on_update=self.check_stop if self.processes.count == 1 else None,
                share=share,
            )
            self.check_stop()
        return Iteration(
            rewards=rewards,
            stats=UpdateStats.join(self.processes.each_group(stats, num_agents)),
            num_images=num_agents * len(texts),
            num_collapsed=num_collapsed,
        )

    def evaluate(
        self,
        policies: Sequence[Policy],
        on: EvaluationSet,
        keep_images: int = 0,
        *,
        use_guards: bool = True,
    ) -> list[Evaluation]:
        """Judge policies on the same prompts and noise; the agents' slots are overwritten."""
        share = self.processes.share(len(policies), len(on.prompts))
        groups = -(-len(share.agents) // self.agents.num_agents)
        per_pass = min(len(share.agents), self.agents.num_agents)
        num_steps = _num_steps(self.evaluation_sampler, len(share.samples), per_pass)
        on_step = self._denoising_bar("evaluating", groups * num_steps)
        with self.work:
            return evaluate(
                policies,
                on,
                self.evaluation_sampler,
                self.scorer,
                self.agents,
                keep_images,
                on_step,
                self.processes,
                self.guards if use_guards else None,
            )

    def take_unet_rows(self) -> int:
        """UNet rows that all processes have sampled without gradient since the last call."""
        samplers = {self.sampler, self.evaluation_sampler}
        own = sum(sampler.take_unet_rows() for sampler in samplers)
        return sum(self.processes.gather(own))

    def _denoising_bar(self, name: str, total: int) -> Callable[[], None]:
        """A bar to call after every denoising step, where a run may be stopped."""
        advance = self.start_bar(name, total)

        def on_step() -> None:
            advance()
            self.check_stop()

        return on_step

    def close(self) -> None:
        """Stop the reward threads."""
        self.scorer.close()
        if self.guards is not None:
            self.guards.close()


def _load_model(settings: Settings, prompts: PromptSplit, device: torch.device) -> FrozenDiffusion:
    """The base model that the settings name, ready to be trained on.

    Raises:
        UserError: if it cannot be loaded.
    """
    model = FrozenDiffusion.load(settings.pretrained, device)
    if settings.pretrained.fuse:
        model.fuse()
    if settings.train.gradient_checkpointing:
        model.pipe.unet.enable_gradient_checkpointing()
    if settings.pretrained.offload_text_encoders:
        negative = settings.sample.negative_prompt
        model.offload_text_encoders([*prompts.train, *prompts.selection, *prompts.report, negative])
    return model


def _num_steps(sampler: Sampler, samples: int, num_agents: int) -> int:
    """Denoising steps that a bar will count."""
    passes = -(-samples // sampler.samples_per_pass(num_agents))
    return passes * len(sampler.schedule.timesteps)
