"""The cost of a run, from its settings alone: images, UNet rows, FLOPs, memory, hours.

Pure arithmetic. `ddpo/cost/footprint.py` supplies what one UNet row of a model costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from config.settings.derived import warmup_tasks
from ddpo.devices import is_large
from ddpo.minibatches import steps_per_sample
from ddpo.rules import find_rule

if TYPE_CHECKING:
    from config.base import Settings

IMAGES_PER_PROMPT = 4  # of the base model, in calibration
# The number of policies on the report set is known only at the end. The default run has about 3 per
# agent.
REPORTED_POLICIES_PER_AGENT = 3
# Dense bfloat16 matrix products with float32 accumulation, TFLOP/s, from the makers' data sheets.
CARDS = {"RTX 3090": 71, "RTX 4090": 165, "A100": 312, "H100": 989}
# Share of that peak that the estimate of hours assumes: an H100's with `speed=fused`, measured by
# `benchmarks/gpu.py`. That is 40 % of the throughput of its matrix products alone (32 % without).
UTILISATION = 0.3
_ADAPTER_COPIES = 4  # weights, gradient and Adam's two moments, all float32
_FLOAT32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFootprint:
    """Cost of the models of objectives and guards, per image; 0 where there are none.

    Attributes:
        weight_bytes: of all of them.
        score_flops: of the objectives of an image.
        ascent_flops: of the objectives whose gradient is followed, forward and backward.
        guard_flops: of the guards of an image.
        score_bytes: peak of scoring one image.
        ascent_bytes: peak of taking the gradient of one image.
    """

    weight_bytes: float = 0
    score_flops: float = 0
    ascent_flops: float = 0
    guard_flops: float = 0
    score_bytes: float = 0
    ascent_bytes: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a model costs, per UNet row or per image.

    Attributes:
        unet_parameters: number of the UNet's frozen parameters.
        vae_parameters: of encoder and decoder.
        text_parameters: of all text encoders.
        weight_bytes: of the frozen parts that stay on the device, in their dtypes.
        adapter_parameters: of one agent's LoRA.
        latent_entries: C * h * w.
        image_entries: 3 * H * W.
        sample_flops: of one row forward.
        train_flops: of one row forward and backward, recomputation by checkpointing included.
        decode_flops: of the VAE's decoder for one image.
        sample_bytes: peak of the activations of one row without gradient.
        train_bytes: peak of one row with gradient.
        decode_bytes: peak of decoding one image.
        decode_back_flops: of the decoder for one image whose gradient goes back to its latents.
        decode_back_bytes: peak of the same.
        rewards: what objectives and guards cost on the same device.
    """

    unet_parameters: int
    vae_parameters: int
    text_parameters: int
    weight_bytes: int
    adapter_parameters: int
    latent_entries: int
    image_entries: int
    sample_flops: int
    train_flops: int
    decode_flops: int
    sample_bytes: int
    train_bytes: int
    decode_bytes: int
    decode_back_flops: int
    decode_back_bytes: int
    rewards: RewardFootprint = RewardFootprint()

    @property
    def is_decoded_alone(self) -> bool:
        """Whether pictures go through the VAE one at a time."""
        return is_large(self.image_entries // 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Numbers of a whole run that follow from its settings; nothing is per device.

    Attributes:
        num_agents: K.
        images_per_agent: N, of one agent in an iteration.
        num_iterations: number in all generations together.
        optimiser_steps: of each agent, in all.
        train_images: sampled to learn from.
        calibration_images: of the base model.
        selection_images: of the base model and of every offspring.
        report_images_per_policy: of each policy of the final front.
        report_policies: number of these policies: an estimate, unlike all else here.
        sample_rows_per_image: UNet rows without gradient, of an image to learn from.
        evaluation_rows_per_image: UNet rows without gradient, of every other image.
        train_rows_per_image: UNet rows with gradient, of an image to learn from.
        base_rows_per_image: UNet rows without gradient that the update adds to these (KL to the
            base model, measures of the policy that sampled).
        is_decoded_back: whether images to learn from are decoded once more, with gradient.
    """

    num_agents: int
    images_per_agent: int
    num_iterations: int
    optimiser_steps: int
    train_images: int
    calibration_images: int
    selection_images: int
    report_images_per_policy: int
    report_policies: int
    sample_rows_per_image: int
    evaluation_rows_per_image: int
    train_rows_per_image: int
    base_rows_per_image: int
    is_decoded_back: bool

    @classmethod
    def of(
        cls,
        settings: Settings,
        num_train_prompts: int,
        num_trained_steps: int,
        report_policies: int | None = None,
    ) -> Plan:
        """The plan of a run.

        Args:
            settings: of the run.
            num_train_prompts: distinct training prompts.
            num_trained_steps: number of steps that a policy gradient is taken on, see `plan_of`.
            report_policies: archive, base model and warm-up archive together; None: an estimate.
        """
        sample, train, evolution = settings.sample, settings.train, settings.evolution
        guided = sample.rows_per_sample
        rule = find_rule(train.update_rule).cost(settings)
        trained = steps_per_sample(train, num_trained_steps)
        pair_rows = rule.learns_from_pairs * rule.rows_per_pair * trained * train.num_inner_epochs
        stages = (evolution.warmup_generations, evolution.evolutionary_generations)
        is_soup = evolution.start == "soup"  # K agents then start from blends of its policies
        warmup_agents = warmup_tasks(
            evolution.start, evolution.num_agents, len(settings.rewards.objectives)
        )
        # Of all agents and generations together.
        tasks = stages[0] * warmup_agents + stages[1] * evolution.num_agents
        offspring = tasks + (evolution.num_agents if is_soup else 0)
        iterations = sum(stages) * evolution.iterations_per_generation
        rollouts = tasks * evolution.iterations_per_generation  # of one agent each
        images_per_agent = sample.prompts_per_iteration * sample.images_per_prompt
        evaluation, prompts = settings.evaluation, settings.evaluation.calibration_prompts
        # UNet rows of an image to learn from, besides the pairs that are trained.
        is_measured_again = rule.is_measured_again and not train.single_pass
        measured = pair_rows if is_measured_again else 0
        base = pair_rows if train.kl_coef > 0 else 0
        sampled_with_gradient = pair_rows if train.single_pass else 0
        return cls(
            num_agents=evolution.num_agents,
            images_per_agent=images_per_agent,
            num_iterations=iterations,
            optimiser_steps=iterations * train.num_inner_epochs * train.updates_per_epoch,
            train_images=rollouts * images_per_agent,
            calibration_images=IMAGES_PER_PROMPT * min(prompts, num_train_prompts),
            selection_images=evaluation.selection_images * (1 + offspring),
            report_images_per_policy=evaluation.report_images,
            report_policies=report_policies or REPORTED_POLICIES_PER_AGENT * evolution.num_agents,
            sample_rows_per_image=guided * sample.num_steps - sampled_with_gradient,
            evaluation_rows_per_image=guided * settings.evaluation_sample.num_steps,
            train_rows_per_image=pair_rows + guided * rule.last_steps,
            base_rows_per_image=measured + base,
            is_decoded_back=rule.last_steps > 0,
        )

    @property
    def images_per_iteration(self) -> int:
        """Of all agents together."""
        return self.num_agents * self.images_per_agent

    @property
    def report_images(self) -> int:
        """Sampled for the published front."""
        return self.report_policies * self.report_images_per_policy

    @property
    def images(self) -> int:
        """Sampled in all."""
        return (
            self.train_images + self.calibration_images + self.selection_images + self.report_images
        )

    @property
    def sample_rows(self) -> int:
        """UNet rows without gradient, in all."""
        judged = self.images - self.train_images
        return (
            self.train_images * self.sample_rows_per_image
            + self.train_images * self.base_rows_per_image
            + judged * self.evaluation_rows_per_image
        )

    def judging_flops(self, images: int, footprint: Footprint) -> float:
        """FLOPs of drawing that many pictures as evaluations do."""
        rows = float(images) * self.evaluation_rows_per_image
        return rows * footprint.sample_flops + float(images) * footprint.decode_flops

    @property
    def train_rows(self) -> int:
        """UNet rows with gradient, in all."""
        return self.train_images * self.train_rows_per_image


def total_flops(plan: Plan, footprint: Footprint) -> float:
    """Floating-point operations of a whole run in UNet, VAE, and models of rewards and guards."""
    return unet_flops(plan, footprint) + reward_flops(plan, footprint.rewards)


def unet_flops(plan: Plan, footprint: Footprint) -> float:
    """Floating-point operations of a whole run in UNet and VAE."""
    return (
        float(plan.sample_rows) * footprint.sample_flops
        + float(plan.train_rows) * footprint.train_flops
        + float(plan.images) * footprint.decode_flops
        + float(plan.is_decoded_back * plan.train_images) * footprint.decode_back_flops
    )


def reward_flops(plan: Plan, rewards: RewardFootprint) -> float:
    """Floating-point operations of a whole run in models of rewards and guards."""
    return (
        plan.images * rewards.score_flops
        + plan.is_decoded_back * plan.train_images * rewards.ascent_flops
        + (plan.selection_images + plan.report_images) * rewards.guard_flops
    )


def hours(flops: float, tflops_per_second: float, utilisation: float) -> float:
    """Hours of one card.

    Args:
        flops: from `total_flops`.
        tflops_per_second: the card's peak, see `CARDS`.
        utilisation: the share of the peak that is reached; `benchmarks/gpu.py` measures it.

    >>> hours(312e12 * 3600, tflops_per_second=312, utilisation=0.5)
    2.0
    """
    return flops / (tflops_per_second * 1e12 * utilisation) / 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Expected peak of device memory, in bytes, by part.

    Attributes:
        weights: UNet, VAE and text encoders.
        rewards: weights of the models of rewards and guards.
        adapters: of all agents, with gradient and Adam's moments.
        rollout: trajectories and pictures of one iteration, and the gradients that sampling takes
            (`train.single_pass`); 0 if they are offloaded to the host.
        measures: noise, and predictions of the policy that sampled, if a rule on the forward
            process keeps them for every step; 0 if they are offloaded.
        sampling: one UNet pass without gradient.
        scoring: the pictures of the last pass, while the next is drawn or decoded.
        decoding: the pictures of one pass.
        training: one UNet pass with gradient, or the largest part of a reward gradient if that is
            more: the rewards, or the decoder back to the latents.
    """

    weights: int
    rewards: float
    adapters: int
    rollout: int
    measures: int
    sampling: int
    scoring: float
    decoding: int
    training: float

    @property
    def lasting(self) -> float:
        """The parts that stay from one iteration to the next."""
        return self.weights + self.rewards + self.adapters + self.rollout + self.measures

    @property
    def drawing(self) -> float:
        """The larger of the passes without gradient, with what scores beside them."""
        return self.scoring + max(self.sampling, self.decoding)

    @property
    def peak(self) -> float:
        """The lasting parts, and the largest of the parts that take turns.

        Drawing, training and joining the rollout's chunks take turns; joining needs a second copy
        of it.
        """
        turns = max(self.drawing, self.training, self.rollout)
        return self.lasting + turns


def rows_that_fit(settings: Settings, memory: Memory, footprint: Footprint, budget: float) -> int:
    """The largest `train.rows_per_pass` within a budget in bytes, a tenth of which is kept free."""
    left = 0.9 * budget - memory.lasting
    if left < max(memory.drawing, memory.rollout):
        return 0
    rows = int(left // footprint.train_bytes)
    if rows == 0 or not find_rule(settings.train.update_rule).cost(settings).last_steps:
        return rows
    limits = (  # bytes of a picture, and how many pictures at most take them together
        (footprint.decode_back_bytes, 1 if footprint.is_decoded_alone else rows),
        (footprint.rewards.ascent_bytes, settings.rewards.batch_size),
    )
    for size, at_once in limits:
        if size * at_once > left:
            rows = min(rows, int(left // size) * settings.sample.rows_per_sample)
    return rows


def expected_memory(settings: Settings, plan: Plan, footprint: Footprint) -> Memory:
    """Peak memory of one device that does all the work."""
    # What an iteration keeps, in numbers per sample.
    steps, samples = settings.sample.num_steps, plan.images_per_iteration
    trajectory = (steps + 1) * footprint.latent_entries
    is_on_device = not settings.sample.offload_rollouts
    rule = find_rule(settings.train.update_rule).cost(settings)
    measures = rule.latents_per_step * steps * footprint.latent_entries
    kept = trajectory + footprint.image_entries
    if settings.train.single_pass:
        kept += footprint.adapter_parameters
    pictures_per_pass = max(
        plan.num_agents, settings.sample.rows_per_pass // settings.sample.rows_per_sample
    )
    # Training: the UNet's pass, or the decoder and the rewards of a reward gradient.
    training: float = settings.train.rows_per_pass * footprint.train_bytes
    if rule.last_steps:
        pictures = settings.train.rows_per_pass // settings.sample.rows_per_sample
        at_once = 1 if footprint.is_decoded_alone else pictures
        training = max(training, at_once * footprint.decode_back_bytes)
        at_once = min(pictures, settings.rewards.batch_size)
        training = max(training, at_once * footprint.rewards.ascent_bytes)
    return Memory(
        weights=footprint.weight_bytes,
        rewards=footprint.rewards.weight_bytes,
        adapters=_ADAPTER_COPIES * _FLOAT32 * plan.num_agents * footprint.adapter_parameters,
        rollout=is_on_device * _FLOAT32 * samples * kept,
        measures=is_on_device * _FLOAT32 * samples * measures,
        sampling=settings.sample.rows_per_pass * footprint.sample_bytes,
        scoring=min(pictures_per_pass, settings.rewards.batch_size) * footprint.rewards.score_bytes,
        decoding=footprint.decode_bytes * (1 if footprint.is_decoded_alone else pictures_per_pass),
        training=training,
    )
