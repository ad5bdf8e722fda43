"""Every setting, stated once. The defaults: the embedded model, offline, in minutes on a laptop.

A line such as

    rows_per_pass: Annotated[int, AtLeast(1), ROUNDING] = 128  # UNet rows per pass

gives name, type, limit, whether a resumed run may change it, default and meaning. A resumed run may
change `FREE` settings, which change nothing in what is learnt, and `ROUNDING` ones, which change
results by rounding only. `LONGER` ones may grow, `FIXED` ones never change, and all others change
only if `resume_force` names them. In a `PATH`, `~` is expanded.

Override a setting as `--config.train.learning_rate=1e-3`, or write a recipe: a file beside this one
that calls `get_config` and changes a few keys. Rules between settings are in
`config/settings/rules.py`. Names that a table lists, such as rewards, are checked against it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any

import ml_collections

from config.settings.declared import (
    FIXED,
    FREE,
    LONGER,
    PATH,
    ROUNDING,
    Copy,
    defaults_of,
)
from config.settings.derived import objective_name, task_counts
from config.settings.flat import flatten, nested
from config.settings.limits import Above, AtLeast, AtMost, Device, OneOf

# Reward vectors remembered per prompt, as in DDPO's code (kvablack/ddpo-pytorch).
PROMPT_MEMORY = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a run."""

    seed: Annotated[int, AtLeast(0)] = 0  # keys every random draw of the run
    logdir: Annotated[str, FREE, PATH] = "logs"  # where run directories are made
    run_name: Annotated[str, FREE] = ""  # name of the run directory; empty: date and time
    # A run directory to continue; "auto": the newest that is not finished.
    resume_from: Annotated[str, FREE, PATH] = ""
    # Names of settings that may differ from those the run began with.
    resume_force: Annotated[tuple[str, ...], FREE] = ()
    # Where metrics go besides metrics.jsonl.
    trackers: Annotated[tuple[str, ...], OneOf("wandb", "tensorboard"), FREE] = ()
    num_threads: Annotated[int, AtLeast(0), ROUNDING] = 0  # CPU threads of torch; 0: all cores
    # off: every layer in its plain form. layers: faster ones, the same up to rounding. fused: on a
    # GPU, norms and activations in fewer passes too (docs/scaling.md).
    speed: Annotated[str, OneOf("off", "layers", "fused"), ROUNDING] = "layers"

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
        return dataclasses.replace(self.sample, num_steps=steps)

    @property
    def in_single_rows(self) -> Settings:
        """The settings to count costs with where the UNet reads the guidance scale itself.

        Guidance then takes no second row.
        """
        return dataclasses.replace(
            self, sample=dataclasses.replace(self.sample, guidance_scale=1.0)
        )

    def to_json(self) -> dict[str, Any]:
        """Nested dictionaries of JSON values, as `config.json` stores them."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    def flat(self) -> dict[str, Any]:
        """Dotted names and values."""
        return dict(flatten(self.to_json()))


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedSettings:
    """The frozen base model."""

    # Hub id (owner/name@revision pins one), folder, .safetensors checkpoint, or a model that ships:
    # "emoji64-sd", or "emoji-sd", whose pictures have 32 pixels and which the evidence is from.
    model: Annotated[str, PATH] = "emoji64-sd"
    variant: str = ""  # file variant on the hub, e.g. "fp16"
    # A .safetensors checkpoint has no configuration: folder or hub id of a model of the same kind.
    single_file_config: Annotated[str, PATH] = ""  # empty: the hub model that diffusers infers
    # What the model is, where neither its files nor its configuration say so rightly; empty: as
    # they say (docs/models.md). The start of a run prints what it was taken for.
    prediction_type: Annotated[str, OneOf("", "epsilon", "v_prediction", "sample")] = ""
    zero_snr: Annotated[str, OneOf("", "yes", "no")] = ""  # whether the first step is pure noise
    # Where the steps lie: 4 of 1000 at 751, 501, 251, 1 (leading), or 999, 749, 499, 249
    # (trailing: models for few steps), or evenly from 999 to 0 (linspace).
    timestep_spacing: Annotated[str, OneOf("", "leading", "trailing", "linspace")] = ""
    # Another VAE: file, folder or hub id. A checkpoint without one needs it.
    vae: Annotated[str, PATH] = ""
    # Layers left out at the end of the text encoders; 1 is "clip skip 2" of the front ends.
    clip_skip: Annotated[int, AtLeast(0)] = 0
    # A prompt is read in parts of 75 tokens, at most this many; the rest is cut.
    prompt_parts: Annotated[int, AtLeast(1)] = 3
    # Number format of the frozen parts. tf32 is float32 whose products a GPU rounds to 10 bits.
    dtype: Annotated[str, OneOf("float32", "tf32", "bfloat16", "float16")] = "float32"
    height: Annotated[int, AtLeast(0)] = 0  # of the pictures, in pixels; 0: the model's own
    width: Annotated[int, AtLeast(0)] = 0
    # One LoRA to merge into the model first: file, folder or hub id, owner/name/file@revision.
    lora: Annotated[str, PATH] = ""
    lora_scale: float = 1.0  # its strength
    # Move them to the CPU once all prompts are encoded.
    offload_text_encoders: Annotated[bool, ROUNDING] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Whether every agent has an adapter of its own, or all share one."""

    # population: one adapter per agent. conditioned: all agents are members of one family, trained
    # along weights drawn again in every iteration and archived at even weights. It has fixed tasks:
    # evolution.strategy=fixed_weights, evolution.start=even_weights (docs/front.md).
    kind: Annotated[str, OneOf("population", "conditioned"), FIXED] = "population"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """The LoRA adapter of each agent."""

    # A conditioned adapter has M + 1 parts of this rank.
    rank: Annotated[int, AtLeast(1), FIXED] = 4
    alpha: Annotated[float, Above(0)] = 4.0  # strength of the update is alpha / rank
    # Layers that get one, by the end of their names; these are the attention projections.
    target_modules: Annotated[tuple[str, ...], FIXED] = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings:
    """The objectives, and how their rewards are measured.

    z = (return - reference) / (ideal - reference) is the scale of all trade-offs. Leave both empty
    to measure them on the base model before training: its mean return minus and plus 3 standard
    deviations within a prompt. `mo_train.py --calibrate` prints them as recipe lines.
    """

    # Two or more of docs/rewards.md, which include taste:FOLDER and classifier:MODEL#LABEL, or
    # functions of your own as module:function or path/to/file.py:function.
    names: Annotated[tuple[str, ...], FIXED, PATH] = ("clip_alignment", "colorfulness")
    # Rewards behind a server, as "name=http://host:port/path"; rewards.names uses the name.
    remotes: Annotated[tuple[str, ...], FREE] = ()
    reference: Annotated[tuple[float, ...], FIXED] = ()  # one number per objective, raw units
    ideal: Annotated[tuple[float, ...], FIXED] = ()
    # Rewards are divided by these before they are weighted; empty: measured.
    scales: Annotated[tuple[float, ...], FIXED] = ()
    # Where rewards and guards get their models instead of the default, as "REWARD.PART=SOURCE": a
    # hub id, a folder or a file. docs/rewards.md lists the parts and their defaults.
    # Of the CLIPs that ship, "emoji64-clip" knows what emoji64-sd draws; the default "emoji-clip"
    # knows emoji-sd's pictures.
    sources: Annotated[tuple[str, ...], PATH] = tuple(
        f"{name}.clip=emoji64-clip" for name in ("clip_alignment", "base_similarity", "diversity")
    )
    # Objectives whose gradient train.update_rule=reward_gradient does not follow, though they have
    # one; a name as in rewards.names.
    black_boxes: tuple[str, ...] = ()
    # Number format of the reward models.
    dtype: Annotated[str, OneOf("float32", "bfloat16", "float16")] = "float32"
    # Where rewards run, e.g. "cpu" or "cuda:1"; empty: beside the base model.
    device: Annotated[str, Device(), ROUNDING] = ""
    batch_size: Annotated[int, AtLeast(1), ROUNDING] = 64  # images per call of a reward
    # A call that takes longer hangs. Several processes wait as long for one another, and for at
    # least ten minutes.
    timeout_seconds: Annotated[float, Above(0), FREE] = 600.0
    # When a reward raises or hangs: end the run, or continue without these images.
    on_error: Annotated[str, OneOf("abort", "skip"), FREE] = "abort"
    # NaN and infinite scores are masked. The run ends when a larger fraction of a rollout's or an
    # evaluation's images has no score.
    max_invalid_fraction: Annotated[float, AtLeast(0), AtMost(1), FREE] = 0.1

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names by which objectives are known: `warmth` for `my_rewards.py:warmth`."""
        return tuple(objective_name(name) for name in self.names)

    @property
    def remote_names(self) -> frozenset[str]:
        """The names to which `remotes` gives a URL."""
        return frozenset(text.partition("=")[0] for text in self.remotes)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """Rewards that are measured at evaluation and never trained on, to show over-optimisation."""

    # Rewards, "base_similarity", "diversity" or "agreement" (docs/guards.md).
    names: Annotated[tuple[str, ...], PATH] = ()
    # How far below the base model's value each may fall, in its own unit; a policy that has lost
    # more is neither archived nor picked as a parent (but an agent of the warm-up or of
    # fixed_weights continues its own last policy). Empty: guards are shown only.
    max_drops: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSettings:
    """Prompts by role: a set that ships with the project, or a file of prompts (docs/prompts.md).

    Roles that name the same set get disjoint parts of it, if it has at least 64 prompts.
    """

    train: Annotated[str, PATH] = "emoji_animals"
    # What the search judges policies by; empty: as train.
    selection: Annotated[str, PATH] = ""
    # The published front is measured on these; empty: as train. emoji-sd knows only "emoji_report".
    report: Annotated[str, PATH] = "emoji_unseen"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """How pictures are drawn; see `Settings.training_sample` and `Settings.evaluation_sample`."""

    num_steps: Annotated[int, AtLeast(1)] = 4  # denoising steps of the pictures to learn from
    # Classifier-free guidance; 1 is none, at half the cost.
    guidance_scale: Annotated[float, AtLeast(1)] = 1.0
    # How much of the contrast that guidance adds is taken back (Lin et al. 2024, eq. 16).
    guidance_rescale: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    # ddim; euler_a: Euler ancestral, as DDIM with eta 1, but its last step has no noise; lcm and
    # tcd: models distilled for these. Empty: the model's own if that is lcm or tcd, else ddim.
    sampler: Annotated[str, OneOf("", "ddim", "euler_a", "lcm", "tcd")] = ""
    # Noise of ddim, where 1 is the variance of DDPM, or gamma of tcd; positive, or there is no
    # policy.
    eta: Annotated[float, Above(0), AtMost(1)] = 1.0
    negative_prompt: str = ""
    # Prompts per agent; each comes once before one comes again.
    prompts_per_iteration: Annotated[int, AtLeast(1)] = 8
    images_per_prompt: Annotated[int, AtLeast(1)] = 1
    # UNet rows per pass, all agents together.
    rows_per_pass: Annotated[int, AtLeast(1), ROUNDING] = 128
    # Keep latents and pictures to learn from on the host.
    offload_rollouts: Annotated[bool, ROUNDING] = False

    @property
    def rows_per_sample(self) -> int:
        """UNet rows one sample needs at one step: two with guidance, one without."""
        return 1 if self.guidance_scale == 1 else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """DDPO's update: the loss that an optimiser step minimises, and how the step is taken."""

    # ddpo: clipped policy gradient on the steps that were sampled. reward_gradient: the gradients
    # of rewards, taken through the last steps, and ddpo's for objectives that have none.
    # diffusion_nft and awm: noise the finished image again and learn from how it is denoised; a
    # step costs one UNet row, as there is no guidance.
    update_rule: str = "reward_gradient"
    # Of reward_gradient: denoising steps, counted from the end, that a gradient flows through.
    gradient_steps: Annotated[int, AtLeast(1)] = 2
    learning_rate: Annotated[float, Above(0)] = 6e-3
    weight_decay: Annotated[float, AtLeast(0)] = 0.0
    max_grad_norm: Annotated[float, Above(0)] = 1.0  # per agent
    num_inner_epochs: Annotated[int, AtLeast(1)] = 1  # passes over a rollout
    updates_per_epoch: Annotated[int, AtLeast(1)] = 1  # optimiser steps per pass
    # Gate on a step's true log-ratio: DDPO's 1e-4 at 4x64x64 latents.
    clip_nats: Annotated[float, Above(0)] = 1.64
    # Weight of the KL divergence from the base model in the loss (DPOK): keeps policies near it. 0
    # is none; above, every training pass needs a second one without gradient.
    kl_coef: Annotated[float, AtLeast(0)] = 0.0
    # Fraction of the steps that is trained, drawn again for each sample.
    timestep_fraction: Annotated[float, Above(0), AtMost(1)] = 1.0
    # A step whose log-probability is more than this many times as sensitive to the prediction as
    # the median step's is left untrained, with all steps after it: its noise drowns the others'
    # gradient. 0: every step that has noise is trained (docs/cheaper_passes.md).
    max_sensitivity: Annotated[float, AtLeast(0)] = 5.0
    # UNet rows per pass with gradient; lower it to save memory.
    rows_per_pass: Annotated[int, AtLeast(1), ROUNDING] = 128
    # Take gradients while sampling, a sample at a time, instead of passing every step once more.
    # The same up to rounding, for ddpo with one optimiser step per iteration. A sample takes the
    # memory of an adapter; train.rows_per_pass holds for sampling too (docs/cheaper_passes.md).
    single_pass: Annotated[bool, ROUNDING] = False
    gradient_checkpointing: Annotated[bool, ROUNDING] = False  # less memory, about a third slower


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageSettings:
    """How reward vectors become advantages."""

    # frozen: rewards are divided by their spread under the base model. per_prompt: by the prompt's
    # own running spread (GDPO). raw: they are weighted first, whatever their units.
    normalisation: str = "frozen"
    # While a prompt has fewer rewards than this, the whole batch's mean stands in for its own.
    min_count: Annotated[int, AtLeast(1), AtMost(PROMPT_MEMORY)] = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """How a policy's returns are estimated: same prompts and same noise for every policy."""

    # Denoising steps of all pictures that policies are judged by, and of whatever is drawn from a
    # finished front; 0: sample.num_steps. So training may draw with fewer.
    num_steps: Annotated[int, AtLeast(0)] = 10
    # At most; the base model draws 4 pictures of each prompt to measure scales and points.
    calibration_prompts: Annotated[int, AtLeast(2)] = 64
    selection_images: Annotated[int, AtLeast(2)] = 48  # per policy and generation, for the search
    # Per policy of the final front: the returns that are published.
    report_images: Annotated[int, AtLeast(2), FREE] = 192
    # What a run spends on blends between neighbours at its end, as a part of its UNet rows.
    blends_fraction: Annotated[float, AtLeast(0), AtMost(1), FREE] = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionSettings:
    """What PGMORL does with the agents: stages, prediction model, selection."""

    num_agents: Annotated[int, AtLeast(1), FIXED] = 5  # policies trained at a time
    # The weights that are wanted, one number per objective, agent by agent: 0.7,0.3 for one agent,
    # 0.9,0.1,0.5,0.5 for two. Empty: evenly over all trade-offs. One agent needs them, or
    # has one objective (docs/one_policy.md).
    weights: Annotated[tuple[float, ...], FIXED] = ()
    # even_weights: the warm-up trains all agents along even weights. soup: it trains one agent per
    # objective, and all others then start as blends of these, evenly between them.
    start: Annotated[str, OneOf("even_weights", "soup")] = "even_weights"
    # prediction_guided: PGMORL's. fixed_weights: every agent continues along its own weights.
    # moead: along each even weight, the policy that is best there. random: any policy, any weights.
    strategy: str = "fixed_weights"
    warmup_generations: Annotated[int, AtLeast(0)] = 1  # agents keep the weights they start with
    # The prediction model chooses policies and weights.
    evolutionary_generations: Annotated[int, AtLeast(0), LONGER] = 5
    iterations_per_generation: Annotated[int, AtLeast(1)] = 3  # sample, then update
    num_weight_candidates: Annotated[int, AtLeast(1)] = 7  # weights tried per policy
    # How much an even front counts against hypervolume.
    sparsity_coef: Annotated[float, AtLeast(0)] = 0.1
    seed: Annotated[int, Copy("seed")]  # the run's, which keys the search too

    @property
    def num_generations(self) -> int:
        """Of all stages together; mixing a soup counts as one."""
        soup = 1 if self.start == "soup" else 0
        return self.warmup_generations + soup + self.evolutionary_generations


def get_config() -> ml_collections.ConfigDict:
    """Default settings: `clip_alignment` against `colorfulness` on the embedded model."""
    return ml_collections.ConfigDict(nested(defaults_of(Settings)))
