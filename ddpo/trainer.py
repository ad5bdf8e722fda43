"""DDPO for K agents at once: the parts, put together, and one iteration of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from config.settings.errors import StoppedError
from ddpo import speed
from ddpo.advantages import advantages
from ddpo.agents.conditioned import make_agents
from ddpo.agents.slots import Agents
from ddpo.collect import collect
from ddpo.cost.stopwatch import Stopwatch
from ddpo.evaluation import evaluate
from ddpo.lengths import MODEL, all_prompts, length_notes
from ddpo.model.stable_diffusion import FrozenDiffusion
from ddpo.prompts import draw_prompts, split_prompts
from ddpo.reward_gradient import RewardGradientUpdate
from ddpo.rewards.collapse import CollapseWatch
from ddpo.rewards.gradients import FIT_PICTURES, RewardGradients
from ddpo.rewards.guards import Guards
from ddpo.rewards.scorer import RewardError, Scorer, reward_device
from ddpo.rules import make_rule
from ddpo.rules.ddpo import Ddpo
from ddpo.sampler import Sampler
from ddpo.seeding import Stream
from ddpo.single_pass import SinglePassUpdate
from ddpo.types import Evaluation, EvaluationSet, RewardBatch, UpdateStats
from ddpo.update import PpoUpdate, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.base import Settings
    from ddpo.model.stable_diffusion import BaseModel
    from ddpo.processes import Processes, Share
    from ddpo.prompts import PromptSplit
    from ddpo.types import Policy, Rollout

    StartBar = Callable[[str, int], Callable[[], object]]  # (name, total) -> call once a step


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """One iteration's pictures and their rewards.

    Attributes:
        generation: index of the generation.
        iteration: within the generation.
        texts: N prompts, the same for every agent.
        weights: (K, M), what the agents are improved along.
        share: which agents and samples this process has.
        rollout: of this process's share.
        rewards: (K, N, M) of all processes.
        num_collapsed: agents that drew the same thing over and over.
    """

    generation: int
    iteration: int
    texts: tuple[str, ...]
    weights: torch.Tensor
    share: Share
    rollout: Rollout
    rewards: RewardBatch
    num_collapsed: int

    @property
    def num_images(self) -> int:
        """Of all agents together."""
        return self.share.num_agents * len(self.texts)

    def metrics(self) -> dict[str, float]:
        """Of the rewards, and how many agents have collapsed."""
        return {**self.rewards.metrics(), "reward/collapsed_agents": self.num_collapsed}


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
        self.settings = settings
        self.processes = processes
        self.start_bar = start_bar
        self.check_stop = check_stop
        self._collapse = CollapseWatch()
        self.prompts = split_prompts(settings.prompts)
        self.model: BaseModel = model or FrozenDiffusion.load(settings.pretrained, processes.device)
        slots = max(len(processes.share(num, 1).agents) for num in settings.task_counts)
        self.agents = make_agents(self.model.unet, slots, settings, processes)
        speed.apply(settings.speed, self.model, self.agents)
        if isinstance(self.model, FrozenDiffusion):
            _save_memory(self.model, settings, self.prompts)
        self.scorer = Scorer.build(settings.rewards, processes.device)
        self.guards = Guards.build(settings, processes.device)
        examples = (self.prompts.train[0], self.prompts.selection[0], self.prompts.report[0])
        self.scorer.check(*self.model.image_size, examples)
        if self.guards is not None:
            self.guards.check(*self.model.image_size, examples)
        self.sampler = Sampler(self.model, settings.training_sample)
        self.evaluation_sampler = self.sampler
        if settings.evaluation_sample != settings.training_sample:
            self.evaluation_sampler = Sampler(self.model, settings.evaluation_sample)
        self.reward_gradients = None
        if settings.train.update_rule == "reward_gradient":
            self.reward_gradients = RewardGradients.build(
                settings.rewards,
                self.scorer.rewards,
                reward_device(settings.rewards, processes.device),
            )
        num_objectives = len(settings.rewards.objectives)
        self.scales = torch.ones(num_objectives)  # (M,), see `advantages`
        self.slopes = torch.zeros(num_objectives)  # (M,), 0 for what a policy gradient learns
        self.updater = make_update(self.sampler, settings, processes)
        self.work = Stopwatch()  # drawing, scoring and updating, against all else of a run

    @property
    def num_fit_pictures(self) -> int:
        """Pictures of the base model that `slopes` wants to see."""
        return 0 if self.reward_gradients is None else FIT_PICTURES

    def measure_slopes(self, base: Evaluation, prompts: Sequence[str]) -> tuple[float, ...]:
        """Which gradients can be followed; see `RewardGradients.slopes`.

        Args:
            base: the base model's pictures and rewards.
            prompts: of its pictures.
        """
        if self.reward_gradients is None:
            return ()
        return self.reward_gradients.slopes(base.images.float() / 255, prompts, base.rewards)

    def calibrate(self, scales: Sequence[float], slopes: Sequence[float] = ()) -> None:
        """Take in what was measured on the base model, before the first update.

        Args:
            scales: M, see `advantages`.
            slopes: M, see `RewardGradients.slopes`; none where no gradient is followed.
        """
        self.scales = torch.tensor(scales)
        if self.reward_gradients is not None and any(slopes):
            self.slopes = torch.tensor(slopes)
            self.updater = make_reward_gradient_update(
                self.sampler,
                self.reward_gradients,
                self.settings,
                self.processes,
                is_hybrid=not all(slopes),
            )

    @property
    def scale(self) -> int:
        """Pixels of a picture per latent, in height and width."""
        return self.model.image_size[0] // self.model.latent_shape[1]

    def length_notes(self) -> list[str]:
        """Which prompts are too long for the model or a reward, a sentence for each reader."""
        prompts = all_prompts(self.prompts, self.settings.sample.negative_prompt)
        cut = self.scorer.cut(prompts)
        if isinstance(self.model, FrozenDiffusion):
            cut = {MODEL: self.model.cut(prompts), **cut}
        return list(length_notes(cut, prompts))

    def load(self, policies: Sequence[Policy], weights: torch.Tensor) -> None:
        """Put K policies, to be improved along weights (K, M), into slots, wherever they are."""
        self._weights = weights
        own = self.processes.share(len(policies), 1).agents
        self.agents.load_tasks(policies, weights, own)

    def policies(self) -> list[Policy]:
        """What the K policies loaded have become; the same in every process."""
        groups = self.processes.each_group(self.agents.snapshot_tasks(), len(self._weights))
        return [policy for group in groups for policy in group]

    def draw(self, generation: int, iteration: int) -> Batch:
        """Draw and score the pictures of one iteration, scoring some while others are drawn.

        All agents draw the same prompts, each with its own noise, in the same steps.

        Args:
            generation: keys the randomness, as does `iteration`.
            iteration: within the generation.

        Raises:
            RewardError: if a reward fails.
            StoppedError: if the run was asked to stop.
        """
        sample, num_agents = self.settings.sample, len(self._weights)
        key = {"run_seed": self.settings.seed, "generation": generation, "iteration": iteration}
        weights = self.agents.draw_directions(self._weights, Stream.WEIGHTS.seed(**key))
        number = generation * self.settings.evolution.iterations_per_generation + iteration
        drawn = draw_prompts(
            self.prompts.train, sample.prompts_per_iteration, number, self.settings.seed
        )
        texts = tuple(text for text in drawn for _ in range(sample.images_per_prompt))
        share = self.processes.share(
            num_agents, len(texts), block=self.settings.train.updates_per_epoch
        )
        agents, samples = share.agents, share.samples
        prompts = self.sampler.prompt_batch(
            [texts[i] for _ in agents for i in samples],
            [Stream.NOISE.seed(**key, agent=k, sample=i) for k in agents for i in samples],
            len(agents),
        )
        num_steps = _num_steps(self.sampler, len(samples), len(agents))
        on_step = self._denoising_bar("sampling", num_steps)
        with (
            self.work.part("sampling", num_agents * len(texts)),
            self.processes.fail_together(RewardError, StoppedError, torch.OutOfMemoryError),
        ):
            rollout, own_rewards = collect(
                self.sampler,
                self.scorer,
                self.agents,
                prompts,
                on_step,
                self.updater.wanted_gradients(len(texts)),
            )
        rewards = dataclasses.replace(
            own_rewards, values=self.processes.join(own_rewards.values, num_agents)
        )
        self.scorer.refuse_too_many_missing(rewards.values)
        return Batch(
            generation=generation,
            iteration=iteration,
            texts=texts,
            weights=weights,
            share=share,
            rollout=rollout,
            rewards=rewards,
            num_collapsed=self._collapse.look(generation, rewards, texts, rollout, agents),
        )

    def advantages(self, batch: Batch) -> torch.Tensor:
        """Advantages (agents, samples) of this process's share; takes the rewards in."""
        agents, samples = batch.share.agents, batch.share.samples
        own = slice(agents.start, agents.stop)
        is_followed = self.slopes.ne(0)
        values, statistics = advantages(
            batch.rewards.values[own],
            batch.weights[own].where(~is_followed, 0),
            [batch.texts] * len(agents),
            self.agents.statistics[: len(agents)],
            self.scales,
            self.settings.advantage,
            standardise=not is_followed.any(),
        )
        self.agents.statistics[: len(agents)] = statistics
        return values[:, samples.start : samples.stop]

    def directions(self, batch: Batch) -> torch.Tensor:
        """(agents, samples, M) what a unit of each objective is worth where gradients are followed.

        Of this process's share: w_k / s_k times the slope; 0 for black boxes, and for pictures with
        a missing score.
        """
        agents, samples = batch.share.agents, batch.share.samples
        own = slice(agents.start, agents.stop)
        per_agent = batch.weights[own] * self.slopes / self.scales
        is_scored = batch.rewards.is_valid[own, samples.start : samples.stop]
        return per_agent[:, None] * is_scored[..., None]

    def update(self, batch: Batch, advantages: torch.Tensor) -> UpdateStats:
        """Improve all agents on a batch; the statistics are of all agents, in every process.

        Raises:
            FloatingPointError: if too many gradients of an agent in a row are not finite.
            StoppedError: if the run was asked to stop.
        """
        share = batch.share
        key = {
            "run_seed": self.settings.seed,
            "generation": batch.generation,
            "iteration": batch.iteration,
            "num_samples": len(batch.texts),
        }
        num_passes = self.updater.num_passes(len(share.samples), len(share.agents))
        with (
            self.work.part("updating", batch.num_images),
            self.processes.fail_together(FloatingPointError, StoppedError),
        ):
            stats = self.updater.update(
                self.agents,
                batch.rollout,
                advantages,
                seeds=[Stream.SHUFFLE.seed(**key, agent=k) for k in share.agents],
                on_pass=self.start_bar("updating", num_passes),
                # the others wait for this one's gradients, so that it may not leave in between
                on_step=self.check_stop if self.processes.count == 1 else None,
                share=share,
                directions=self.directions(batch),
            )
            self.check_stop()
        return UpdateStats.join(self.processes.each_group(stats, share.num_agents))

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
        with self.work.part("evaluating", len(policies) * len(on.prompts)):
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

    def make_room(self) -> None:
        """Exchange the agents for slots that hold blends of two policies; training is over."""
        rank = 2 * self.settings.policy_adapter.rank
        adapter = dataclasses.replace(self.settings.adapter, rank=rank, alpha=float(rank))
        self.agents.remove()
        self.agents = Agents(self.model.unet, self.agents.num_agents, adapter, self.settings.train)
        speed.apply(self.settings.speed, self.model, self.agents)

    def take_unet_rows(self) -> int:
        """UNet rows that all processes have passed since the last call."""
        return sum(self.processes.gather(self.agents.take_num_rows()))

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


def make_update(sampler: Sampler, settings: Settings, processes: Processes) -> Update:
    """The way of updating that the settings ask for.

    Raises:
        UserError: if no step of the sampler's schedule can be trained.
    """
    if settings.train.single_pass:
        return SinglePassUpdate(sampler.schedule, settings.train, processes)
    rule = make_rule(sampler, settings)
    return PpoUpdate(rule, sampler.schedule, settings.train, processes)


def make_reward_gradient_update(
    sampler: Sampler,
    rewards: RewardGradients,
    settings: Settings,
    processes: Processes,
    *,
    is_hybrid: bool,
) -> RewardGradientUpdate:
    """Follows gradients of rewards.

    Args:
        sampler: the rollouts' own.
        rewards: the objectives as functions of pictures.
        settings: of the run.
        processes: that share the work.
        is_hybrid: whether a policy gradient learns some of the objectives.

    Raises:
        UserError: if it has to, and no step of the sampler's schedule can be trained.
    """
    pairs = None
    if is_hybrid or settings.train.kl_coef > 0:
        rule = make_rule(sampler, settings)
        pairs = PpoUpdate(rule, sampler.schedule, settings.train, processes)
    return RewardGradientUpdate(Ddpo(sampler, settings), rewards, pairs, settings, processes)


def _save_memory(model: FrozenDiffusion, settings: Settings, prompts: PromptSplit) -> None:
    """Checkpoint gradients and free the text encoders, where the settings want that."""
    if settings.train.gradient_checkpointing:
        model.pipe.unet.enable_gradient_checkpointing()
        model.pipe.vae.enable_gradient_checkpointing()
    if settings.pretrained.offload_text_encoders:
        negative = settings.sample.negative_prompt
        model.offload_text_encoders([*prompts.train, *prompts.selection, *prompts.report, negative])


def _num_steps(sampler: Sampler, samples: int, num_agents: int) -> int:
    """Denoising steps that a bar will count."""
    passes = -(-samples // sampler.samples_per_pass(num_agents))
    return passes * len(sampler.schedule.timesteps)
