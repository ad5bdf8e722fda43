"""Typed, frozen settings: one dataclass per section, each value with the limits it must keep.

`config/settings/parse.py` makes them from a ConfigDict, `config/settings/rules.py` holds the rules
between settings.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from config.settings.limits import Above, AtLeast, AtMost, Below, Device, OneOf

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings:
    """The processes that share a run."""

    count: Annotated[int, AtLeast(0)]
    timeout_seconds: Annotated[float, Above(0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedSettings:
    """The frozen base model."""

    model: str
    revision: str
    variant: str
    single_file_config: str
    dtype: Annotated[str, OneOf("float32", "tf32", "bfloat16", "float16")]
    height: Annotated[int, AtLeast(0)]
    width: Annotated[int, AtLeast(0)]
    original_size: tuple[int, ...]
    crop_top_left: tuple[int, ...]
    lora: str
    lora_file: str
    lora_revision: str
    lora_scale: float
    channels_last: bool
    tf32: bool
    compile: str
    vae_slicing: bool
    vae_tiling: bool
    offload_text_encoders: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What the agents have of their own and what they share."""

    kind: Annotated[str, OneOf("population", "conditioned")]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """The LoRA adapter of each agent."""

    rank: Annotated[int, AtLeast(1)]
    alpha: Annotated[float, Above(0)]
    target_modules: tuple[str, ...]
    seed: Annotated[int, AtLeast(0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings:
    """The objectives and what their rewards are built from."""

    names: tuple[str, ...]
    remotes: tuple[str, ...]
    reference: tuple[float, ...]
    ideal: tuple[float, ...]
    scales: tuple[float, ...]
    sources: tuple[str, ...]
    clip_model: str
    clip_score_model: str
    aesthetic_clip: str
    aesthetic_head: str
    pick_model: str
    pick_processor: str
    hps_weights: str
    hps_clip: str
    image_reward_weights: str
    image_reward_tokenizer: str
    dtype: Annotated[str, OneOf("float32", "bfloat16", "float16")]
    device: Annotated[str, Device()]
    batch_size: Annotated[int, AtLeast(1)]
    timeout_seconds: Annotated[float, Above(0)]
    on_error: Annotated[str, OneOf("abort", "skip")]
    max_invalid_fraction: Annotated[float, AtLeast(0), AtMost(1)]
    remote_encoding: Annotated[str, OneOf("png", "jpeg")]
    remote_attempt_seconds: Annotated[float, Above(0)]
    remote_retries: Annotated[int, AtLeast(0)]

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names by which objectives are known: `warmth` for `my_rewards.py:warmth`."""
        return tuple(objective_name(name) for name in self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """What is measured at evaluation beside the objectives."""

    names: tuple[str, ...]
    max_losses: tuple[float, ...]
    clip_model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSettings:
    """Prompt sets, by role."""

    train: str
    selection: str
    report: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """How pictures are drawn; see `Settings.training_sample` and `Settings.evaluation_sample`."""

    num_steps: Annotated[int, AtLeast(1)]
    guidance_scale: Annotated[float, AtLeast(1)]
    eta: Annotated[float, Above(0), AtMost(1)]
    noisy_steps: Annotated[int, AtLeast(0)]
    negative_prompt: str
    prompts_per_iteration: Annotated[int, AtLeast(1)]
    images_per_prompt: Annotated[int, AtLeast(1)]
    rows_per_pass: Annotated[int, AtLeast(1)]
    offload_rollouts: bool

    @property
    def rows_per_sample(self) -> int:
        """UNet rows one sample needs at one step: two with guidance, one without."""
        return 1 if self.guidance_scale == 1 else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What an optimiser step minimises, and how it is taken."""

    update_rule: str
    nft_strength: Annotated[float, Above(0)]
    learning_rate: Annotated[float, Above(0)]
    adam_beta1: Annotated[float, AtLeast(0), Below(1)]
    adam_beta2: Annotated[float, AtLeast(0), Below(1)]
    adam_epsilon: Annotated[float, Above(0)]
    weight_decay: Annotated[float, AtLeast(0)]
    max_grad_norm: Annotated[float, Above(0)]
    num_inner_epochs: Annotated[int, AtLeast(1)]
    updates_per_epoch: Annotated[int, AtLeast(1)]
    clip_nats: Annotated[float, Above(0)]
    kl_coef: Annotated[float, AtLeast(0)]
    best_of: Annotated[float, Above(0), AtMost(1)]
    timestep_fraction: Annotated[float, Above(0), AtMost(1)]
    skip_last_steps: Annotated[int, AtLeast(0)]
    step_weighting: Annotated[str, OneOf("equal", "sensitivity")]
    rows_per_pass: Annotated[int, AtLeast(1)]
    single_pass: bool
    recompute_log_probs: Annotated[str, OneOf("auto", "always", "never")]
    gradient_checkpointing: bool
    max_skipped_steps: Annotated[int, AtLeast(0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageSettings:
    """How reward vectors become advantages."""

    normalisation: str
    buffer_size: Annotated[int, AtLeast(1)]
    min_count: Annotated[int, AtLeast(1)]
    max_advantage: Annotated[float, Above(0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """What a policy's returns are estimated from."""

    num_steps: Annotated[int, AtLeast(0)]
    calibration_prompts: Annotated[int, AtLeast(2)]
    selection_images: Annotated[int, AtLeast(2)]
    report_images: Annotated[int, AtLeast(2)]
    sample_prompts: Annotated[int, AtLeast(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSettings:
    """How many checkpoints stay, and how many may fail."""

    keep: Annotated[int, AtLeast(2)]
    max_failures: Annotated[int, AtLeast(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionSettings:
    """What PGMORL does with the agents: stages, prediction model, selection.

    `seed` is the run's seed: it is not a setting of its own.
    """

    num_agents: Annotated[int, AtLeast(1)]
    start: Annotated[str, OneOf("even_weights", "soup")]
    strategy: str
    predictor: str
    warmup_generations: Annotated[int, AtLeast(0)]
    evolutionary_generations: Annotated[int, AtLeast(0)]
    iterations_per_generation: Annotated[int, AtLeast(1)]
    num_weight_candidates: Annotated[int, AtLeast(1)]
    sparsity_coef: Annotated[float, AtLeast(0)]
    num_directions: Annotated[int, AtLeast(2)]
    slots_per_direction: Annotated[int, AtLeast(1)]
    num_neighbours: Annotated[int, AtLeast(1)]
    seed: int

    @property
    def num_generations(self) -> int:
        """Of all stages together; mixing a soup counts as one."""
        soup = 1 if self.start == "soup" else 0
        return self.warmup_generations + soup + self.evolutionary_generations


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a run."""

    seed: Annotated[int, AtLeast(0)]
    logdir: str
    run_name: str
    resume_from: str
    resume_force: tuple[str, ...]
    trackers: Annotated[tuple[str, ...], OneOf("wandb", "tensorboard")]
    num_threads: Annotated[int, AtLeast(0)]
    speed: Annotated[str, OneOf("off", "layers", "fused")]
    processes: ProcessSettings
    pretrained: PretrainedSettings
    agents: AgentSettings
    adapter: AdapterSettings
    rewards: RewardSettings
    guards: GuardSettings
    prompts: PromptSettings
    sample: SampleSettings
    train: TrainSettings
    advantage: AdvantageSettings
    evaluation: EvaluationSettings
    checkpoint: CheckpointSettings
    evolution: EvolutionSettings

    @property
    def policy_adapter(self) -> AdapterSettings:
        """The adapter that a policy is.

        A member of the conditioned family holds M + 1 adapters side by side
        (`ddpo/agents/conditioned.py`) and has their strength, alpha / rank.
        """
        num = 1 + len(self.rewards.names) if self.agents.kind == "conditioned" else 1
        adapter = self.adapter
        return dataclasses.replace(adapter, rank=num * adapter.rank, alpha=num * adapter.alpha)

    @property
    def task_counts(self) -> tuple[int, ...]:
        """How many tasks a generation has, in one stage or another."""
        num_agents, start = self.evolution.num_agents, self.evolution.start
        return task_counts(start, num_agents, len(self.rewards.names))

    @property
    def training_sample(self) -> SampleSettings:
        """How pictures are drawn to learn from, in passes with gradient if `train.single_pass`."""
        if not self.train.single_pass:
            return self.sample
        return dataclasses.replace(self.sample, rows_per_pass=self.train.rows_per_pass)

    @property
    def evaluation_sample(self) -> SampleSettings:
        """How pictures are drawn by which policies are judged, and from finished policies."""
        steps = self.evaluation.num_steps or self.sample.num_steps
        return dataclasses.replace(self.sample, num_steps=steps, noisy_steps=0)

    def to_json(self) -> dict[str, Any]:
        """Nested dictionaries of JSON values, as `config.json` stores them."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    def flat(self) -> dict[str, Any]:
        """Dotted names and values."""
        return dict(flatten(self.to_json()))


def objective_name(reward_name: str) -> str:
    """`warmth` of `my_rewards.py:warmth`; a name without a colon as it is."""
    return reward_name.rpartition(":")[2]


def trained_samples(best_of: float, num_samples: int) -> int:
    """How many of an agent's samples are trained with `train.best_of`.

    >>> trained_samples(1 / 3, 48)
    16
    """
    return round(best_of * num_samples)


def warmup_tasks(start: str, num_agents: int, num_objectives: int) -> int:
    """How many tasks the warm-up has with `evolution.start`: a soup's trains the extremes alone."""
    return num_objectives if start == "soup" else num_agents


def task_counts(start: str, num_agents: int, num_objectives: int) -> tuple[int, ...]:
    """How many tasks a generation has, in one stage or another, each number once.

    >>> task_counts("soup", num_agents=6, num_objectives=2)
    (2, 6)
    """
    return tuple(sorted({warmup_tasks(start, num_agents, num_objectives), num_agents}))


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every setting in nested dictionaries."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
