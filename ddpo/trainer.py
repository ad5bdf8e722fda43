"""DDPO for K agents together: builds all parts and runs one iteration: draw, score, update."""

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
from ddpo.cost.plan import Plan
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
from ddpo.rules import find_rule, make_rule, policy_gradient_steps
from ddpo.rules.ddpo import Ddpo
from ddpo.sampler import Sampler
from ddpo.seeding import Stream
from ddpo.single_pass import SinglePassUpdate
from ddpo.steps import check_spacing, described
from ddpo.types import Evaluation, EvaluationSet, RewardBatch, UpdateStats
from ddpo.update import PpoUpdate, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.base import Settings
    from ddpo.model.stable_diffusion import BaseModel
    from ddpo.processes import Processes, Share
    from ddpo.prompts import PromptSplit
    from ddpo.types import Policy, Rollout

    StartBar = Callable[[str, int], Callable[[], object]]  # (name, total) -> call once per step


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """One iteration's pictures and their rewards.

    Attributes:
        generation: index of the generation.
        iteration: within the generation.
        texts: N prompts, the same for every agent.
        weights: (K, M), along which the agents are improved.
        share: which agents and samples this process has.
        rollout: of this process's share.
        rewards: (K, N, M) of all processes.
        num_collapsed: agents whose rewards no longer vary within any prompt.
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
        """Images of all agents together."""
        return self.share.num_agents * len(self.texts)

    def metrics(self) -> dict[str, float]:
        """Metrics of the rewards, and the number of collapsed agents."""
        return {**self.rewards.metrics(), "reward/collapsed_agents": self.num_collapsed}


class Trainer:
    """Samples, scores and updates all agents, and evaluates policies.

    Args:
        settings: of the run.
        processes: all processes that share the work; this one's device has the model and its
            agents.
        start_bar: starts a progress bar.
        check_stop: called between denoising steps and after optimiser steps, where nothing is half
            done; it raises StoppedError to end the run there.
        model: the base model; by default `settings.pretrained` is loaded.

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
        # The base model and the agents on it.
        self.model: BaseModel = model or FrozenDiffusion.load(settings.pretrained, processes.device)
        slots = max(len(processes.share(num, 1).agents) for num in settings.task_counts)
        self.agents = make_agents(self.model.unet, slots, settings, processes)
        speed.apply(settings.speed, self.model, self.agents)
        if isinstance(self.model, FrozenDiffusion):
            _save_memory(self.model, settings, self.prompts)
        # Rewards and guards, each called once now so that mistakes show early.
        self.scorer = Scorer.build(settings.rewards, processes.device)
        self.guards = Guards.build(settings, processes.device)
        examples = (self.prompts.train[0], self.prompts.selection[0], self.prompts.report[0])
        self.scorer.check(*self.model.image_size, examples)
        if self.guards is not None:
            self.guards.check(*self.model.image_size, examples)
        # Samplers and the update.
        self.sampler = Sampler(self.model, settings.training_sample)
        check_spacing(self.sampler.schedule, settings.pretrained.timestep_spacing)
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
        self.slopes = torch.zeros(num_objectives)  # (M,), 0 where a policy gradient learns
        self._is_calibrated = self.reward_gradients is None  # DDPO can do without
        self.updater = make_update(self.sampler, settings, processes)
        self.work = Stopwatch()  # time of drawing, scoring and updating, without the rest of a run

    @property
    def num_fit_pictures(self) -> int:
        """How many of the base model's pictures `measure_slopes` needs."""
        return 0 if self.reward_gradients is None else FIT_PICTURES

    def measure_slopes(self, base: Evaluation, prompts: Sequence[str]) -> tuple[float, ...]:
        """Measure which objectives' gradients can be followed; see `RewardGradients.slopes`.

        Args:
            base: the base model's pictures and rewards.
            prompts: one per picture.

        Returns:
            M slopes, 0 for black boxes; () if no gradients are followed.
        """
        if self.reward_gradients is None:
            return ()
        return self.reward_gradients.slopes(base.images.float() / 255, prompts, base.rewards)

    def calibrate(self, scales: Sequence[float], slopes: Sequence[float] = ()) -> None:
        """Set what was measured on the base model, before the first update.

        Args:
            scales: M, see `advantages`.
            slopes: M, see `RewardGradients.slopes`; () if no gradients are followed.
        """
        self.scales = torch.tensor(scales)
        self._is_calibrated = True
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

    def step_notes(self) -> list[str]:
        """How pictures are drawn and which steps are trained, a sentence each."""
        return described(self.sampler.schedule, self.trained_steps)

    @property
    def trained_steps(self) -> list[int] | None:
        """Steps that a policy gradient is taken on; None where none is taken."""
        return policy_gradient_steps(self.settings, self.sampler.schedule)

    @property
    def plan(self) -> Plan:
        """What the run draws and trains in all."""
        settings = self.settings
        counted = settings.in_single_rows if self.sampler.embeds_guidance else settings
        return Plan.of(counted, len(self.prompts.train), len(self.trained_steps or ()))

    def length_notes(self) -> list[str]:
        """One sentence for the model and for each reward that cuts off prompts."""
        prompts = all_prompts(self.prompts, self.settings.sample.negative_prompt)
        cut = self.scorer.cut(prompts)
        if isinstance(self.model, FrozenDiffusion):
            cut = {MODEL: self.model.cut(prompts), **cut}
        return list(length_notes(cut, prompts))

    def load(self, policies: Sequence[Policy], weights: torch.Tensor) -> None:
        """Load K policies, to be improved along weights (K, M), into the slots of all processes."""
        self._weights = weights
        own = self.processes.share(len(policies), 1).agents
        self.agents.load_tasks(policies, weights, own)

    def policies(self) -> list[Policy]:
        """The K loaded policies as they are now; the same in every process."""
        groups = self.processes.each_group(self.agents.snapshot_tasks(), len(self._weights))
        return [policy for group in groups for policy in group]

    def draw(self, generation: int, iteration: int) -> Batch:
        """Draw and score the pictures of one iteration; some are scored while others are drawn.

        All agents draw the same prompts in the same steps, each with its own noise.

        Args:
            generation: keys the randomness, together with `iteration`.
            iteration: within the generation.

        Raises:
            RewardError: if a reward fails.
            StoppedError: if the run was asked to stop.
        """
        sample, num_agents = self.settings.sample, len(self._weights)
        key = {"run_seed": self.settings.seed, "generation": generation, "iteration": iteration}
        weights = self.agents.draw_directions(self._weights, Stream.WEIGHTS.seed(**key))
        # Prompts: the same for every agent.
        number = generation * self.settings.evolution.iterations_per_generation + iteration
        drawn = draw_prompts(
            self.prompts.train, sample.prompts_per_iteration, number, self.settings.seed
        )
        texts = tuple(text for text in drawn for _ in range(sample.images_per_prompt))
        # This process's share of them, with the noise of each sample.
        share = self.processes.share(
            num_agents, len(texts), block=self.settings.train.updates_per_epoch
        )
        agents, samples = share.agents, share.samples
        prompts = self.sampler.prompt_batch(
            [texts[i] for _ in agents for i in samples],
            [Stream.NOISE.seed(**key, agent=k, sample=i) for k in agents for i in samples],
            len(agents),
        )
        # Pictures and scores.
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
        # Scores of all processes.
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
        """Advantages (agents, samples) of this process's share; adds the rewards to statistics."""
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
        """The value of one unit of each objective to a picture's agent, for reward gradients.

        Returns:
            (agents, samples, M) for this process's share: w_k / s_k times the slope; 0 for black
            boxes and for pictures with a missing score.
        """
        agents, samples = batch.share.agents, batch.share.samples
        own = slice(agents.start, agents.stop)
        per_agent = batch.weights[own] * self.slopes / self.scales
        is_scored = batch.rewards.is_valid[own, samples.start : samples.stop]
        return per_agent[:, None] * is_scored[..., None]

    def update(self, batch: Batch, advantages: torch.Tensor) -> UpdateStats:
        """Improve all agents on a batch.

        Returns:
            Statistics of all agents, the same in every process.

        Raises:
            FloatingPointError: if too many consecutive gradients of an agent are not finite.
            RuntimeError: if gradients of rewards are to be followed and `calibrate` was not called.
            StoppedError: if the run was asked to stop.
        """
        if not self._is_calibrated:
            raise RuntimeError("Trainer.calibrate comes before updates along gradients of rewards")
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
                # Several processes must not stop in between: others wait for this one's gradients.
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
        """Judge policies on the same prompts and noise, overwriting the agents' slots.

        Args:
            policies: to judge.
            on: prompts and seeds.
            keep_images: how many images to keep per policy, from the first.
            use_guards: whether guards look at the pictures too.

        Returns:
            One evaluation per policy, the same in every process.
        """
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
        """UNet rows of all processes since the last call."""
        return sum(self.processes.gather(self.agents.take_num_rows()))

    def _denoising_bar(self, name: str, total: int) -> Callable[[], None]:
        """Start a progress bar of denoising steps; a run may be stopped after each of them."""
        advance = self.start_bar(name, total)

        def on_step() -> None:
            advance()
            self.check_stop()

        return on_step

    def close(self) -> None:
        """End the threads of rewards and guards."""
        self.scorer.close()
        if self.guards is not None:
            self.guards.close()


def make_update(sampler: Sampler, settings: Settings, processes: Processes) -> Update:
    """Make the update that the settings ask for.

    Raises:
        UserError: if no step of the sampler's schedule can be trained.
    """
    if settings.train.single_pass:
        return SinglePassUpdate(sampler.schedule, settings.train, processes)
    rule = make_rule(sampler, settings)
    update = PpoUpdate(rule, sampler.schedule, settings.train, processes)
    if find_rule(settings.train.update_rule).cost(settings).learns_from_pairs:
        assert update.steps  # if there are none, an error is raised
    return update


def make_reward_gradient_update(
    sampler: Sampler,
    rewards: RewardGradients,
    settings: Settings,
    processes: Processes,
    *,
    is_hybrid: bool,
) -> RewardGradientUpdate:
    """Make the update that follows gradients of rewards.

    Args:
        sampler: the rollouts' own.
        rewards: the objectives as differentiable functions of pictures.
        settings: of the run.
        processes: all processes that share the work.
        is_hybrid: whether a policy gradient learns some of the objectives.

    Raises:
        UserError: if a policy gradient is needed and no step of the schedule can be trained.
    """
    pairs = None
    if is_hybrid or settings.train.kl_coef > 0:
        rule = make_rule(sampler, settings)
        pairs = PpoUpdate(rule, sampler.schedule, settings.train, processes)
    return RewardGradientUpdate(Ddpo(sampler, settings), rewards, pairs, settings, processes)


def _save_memory(model: FrozenDiffusion, settings: Settings, prompts: PromptSplit) -> None:
    """Turn on gradient checkpointing and free the text encoders, if the settings say so."""
    if settings.train.gradient_checkpointing:
        model.pipe.unet.enable_gradient_checkpointing()
        model.pipe.vae.enable_gradient_checkpointing()
    if settings.pretrained.offload_text_encoders:
        negative = settings.sample.negative_prompt
        model.offload_text_encoders([*prompts.train, *prompts.selection, *prompts.report, negative])


def _num_steps(sampler: Sampler, samples: int, num_agents: int) -> int:
    """The number of denoising steps, for a progress bar."""
    passes = -(-samples // sampler.samples_per_pass(num_agents))
    return passes * len(sampler.schedule.timesteps)
