"""Typed, frozen settings: one dataclass per section, and the rules they must obey.

`parse` turns a ConfigDict into `Settings`, or raises one `ConfigError` that lists every problem:
the setting, its value, the rule and what to do. Nothing heavy is imported here, so a wrong setting
is met before any model loads.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from config.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from ml_collections import ConfigDict


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedSettings:
    """The frozen base model."""

    model: str
    revision: str
    variant: str
    dtype: str
    channels_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """The LoRA adapter of each agent."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings:
    """The objectives and what their rewards are built from."""

    names: tuple[str, ...]
    reference: tuple[float, ...]
    ideal: tuple[float, ...]
    clip_model: str
    aesthetic_clip: str
    aesthetic_head: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSettings:
    """Prompt sets."""

    train: str
    report: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """How pictures are drawn, in training and evaluation alike."""

    num_steps: int
    guidance_scale: float
    eta: float
    negative_prompt: str
    prompts_per_iteration: int
    images_per_prompt: int
    rows_per_pass: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """DDPO's update."""

    learning_rate: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    weight_decay: float
    max_grad_norm: float
    num_inner_epochs: int
    updates_per_epoch: int
    clip_nats: float
    timestep_fraction: float
    skip_last_steps: int
    rows_per_pass: int
    recompute_log_probs: str
    gradient_checkpointing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageSettings:
    """How reward vectors become advantages."""

    normalisation: str
    buffer_size: int
    min_count: int
    max_advantage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """How many images a policy's returns are estimated from."""

    selection_images: int
    report_images: int
    sample_prompts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionSettings:
    """What PGMORL does with the agents: stages, prediction model, selection.

    `seed` is the run's seed: it is not a setting of its own.
    """

    num_agents: int
    strategy: str
    predictor: str
    warmup_generations: int
    evolutionary_generations: int
    iterations_per_generation: int
    num_weight_candidates: int
    sparsity_coef: float
    num_directions: int
    slots_per_direction: int
    num_neighbours: int
    seed: int

    @property
    def num_generations(self) -> int:
        """Warm-up and evolutionary generations together."""
        return self.warmup_generations + self.evolutionary_generations


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a run."""

    seed: int
    logdir: str
    run_name: str
    resume_from: str
    trackers: tuple[str, ...]
    num_threads: int
    pretrained: PretrainedSettings
    adapter: AdapterSettings
    rewards: RewardSettings
    prompts: PromptSettings
    sample: SampleSettings
    train: TrainSettings
    advantage: AdvantageSettings
    evaluation: EvaluationSettings
    evolution: EvolutionSettings

    def to_json(self) -> dict[str, Any]:
        """Nested dictionaries of JSON values, as `config.json` stores them."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    def flat(self) -> dict[str, Any]:
        """Dotted names and values."""
        return dict(_flatten(self.to_json()))


Choices = typing.Mapping[str, typing.Collection[str]]

_FIXED_CHOICES: Choices = {
    "pretrained.dtype": ("float32", "bfloat16", "float16"),
    "train.recompute_log_probs": ("auto", "always", "never"),
    "advantage.normalisation": ("frozen", "per_prompt", "raw"),
    "trackers": ("wandb", "tensorboard"),
}

# setting -> (smallest value, whether that value itself is allowed)
_LOWER_BOUNDS: Mapping[str, tuple[float, bool]] = {
    "seed": (0, True),
    "num_threads": (0, True),
    "adapter.rank": (1, True),
    "adapter.alpha": (0, False),
    "adapter.seed": (0, True),
    "sample.num_steps": (1, True),
    "sample.guidance_scale": (1, True),
    "sample.eta": (0, False),
    "sample.prompts_per_iteration": (1, True),
    "sample.images_per_prompt": (1, True),
    "sample.rows_per_pass": (1, True),
    "train.learning_rate": (0, False),
    "train.adam_beta1": (0, True),
    "train.adam_beta2": (0, True),
    "train.adam_epsilon": (0, False),
    "train.weight_decay": (0, True),
    "train.max_grad_norm": (0, False),
    "train.num_inner_epochs": (1, True),
    "train.updates_per_epoch": (1, True),
    "train.clip_nats": (0, False),
    "train.timestep_fraction": (0, False),
    "train.skip_last_steps": (0, True),
    "train.rows_per_pass": (1, True),
    "advantage.buffer_size": (1, True),
    "advantage.min_count": (1, True),
    "advantage.max_advantage": (0, False),
    "evaluation.selection_images": (2, True),
    "evaluation.report_images": (2, True),
    "evaluation.sample_prompts": (1, True),
    "evolution.num_agents": (1, True),
    "evolution.warmup_generations": (0, True),
    "evolution.evolutionary_generations": (0, True),
    "evolution.iterations_per_generation": (1, True),
    "evolution.num_weight_candidates": (1, True),
    "evolution.sparsity_coef": (0, True),
    "evolution.num_directions": (2, True),
    "evolution.slots_per_direction": (1, True),
    "evolution.num_neighbours": (1, True),
}

_UPPER_BOUNDS: Mapping[str, tuple[float, bool]] = {
    "sample.eta": (1, True),
    "train.adam_beta1": (1, False),
    "train.adam_beta2": (1, False),
    "train.timestep_fraction": (1, True),
}


def parse(config: ConfigDict, choices: Choices) -> Settings:
    """Check a configuration and freeze it.

    Args:
        config: as made by `config/base.py`, with overrides applied.
        choices: dotted setting -> the names it may take, from the tables of `ddpo/` and `morl/`;
            for a tuple of names every member is checked.

    Returns:
        The typed settings.

    Raises:
        ConfigError: listing every problem found.
    """
    problems: list[str] = []
    values = config.to_dict()
    if isinstance(values.get("evolution"), dict):  # the run's seed also keys the search
        values["evolution"] = {**values["evolution"], "seed": values.get("seed")}
    values = _checked_section(Settings, values, "", problems)
    flat = dict(_flatten(values))
    problems += _choice_problems(flat, {**_FIXED_CHOICES, **choices})
    problems += _range_problems(flat)
    problems += _cross_problems(flat)
    if problems:
        raise ConfigError(problems)
    return typing.cast("Settings", _build(Settings, values))


# Settings that may differ between a run and its continuation.
_FREE_ON_RESUME = {"resume_from", "logdir", "run_name", "trackers", "num_threads"}


def check_resumable(before: Mapping[str, Any], settings: Settings) -> None:
    """Refuse to continue a run under other settings; more evolutionary generations are welcome.

    Args:
        before: `Settings.to_json()` of the run, as read from its checkpoint.
        settings: those of now.

    Raises:
        ConfigError: listing what differs.
    """
    old, new = dict(_flatten(before)), settings.flat()
    changed = {name for name in {*old, *new} - _FREE_ON_RESUME if old.get(name) != new.get(name)}
    longer = "evolution.evolutionary_generations"
    if longer in changed and new[longer] > old.get(longer, math.inf):
        changed.remove(longer)
    if changed:
        raise ConfigError(
            [
                f"{name} was {old.get(name)!r} when the run began and is {new.get(name)!r} now; "
                "a run continues with the settings it began with"
                for name in sorted(changed)
            ]
        )


def _checked_section(
    section: type, values: Mapping[str, Any], prefix: str, problems: list[str]
) -> dict[str, Any]:
    """The values of one section that have the right name and type; problems are appended."""
    hints = typing.get_type_hints(section)
    out: dict[str, Any] = {}
    for name in values:
        if name not in hints:
            close = difflib.get_close_matches(name, hints, n=1)
            advice = f"did you mean {prefix}{close[0]}?" if close else "remove it"
            problems.append(f"{prefix}{name} is not a setting; {advice}")
    for name, kind in hints.items():
        if name not in values:
            problems.append(f"{prefix}{name} is missing; config/base.py has its default")
        elif dataclasses.is_dataclass(kind):
            if isinstance(values[name], dict):
                nested = typing.cast("type", kind)
                out[name] = _checked_section(nested, values[name], f"{prefix}{name}.", problems)
            else:
                problems.append(f"{prefix}{name}={values[name]!r} must be a section of settings")
        else:
            try:
                out[name] = _coerce(values[name], kind)
            except TypeError as error:
                if f"{prefix}{name}" != "evolution.seed":  # reported once, as seed
                    problems.append(f"{prefix}{name}={values[name]!r} must be {error}")
    return out


def _coerce(value: object, kind: object) -> object:
    """`value` as `kind`; raises TypeError("a whole number") and the like if it is not one."""
    if typing.get_origin(kind) is tuple:
        member = typing.get_args(kind)[0]
        words = "names" if member is str else "numbers"
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"""a tuple of {words}, such as "('a','b')" """.strip())
        try:
            return tuple(_coerce(item, member) for item in value)
        except TypeError as error:
            raise TypeError(f"a tuple of {words}") from error
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    names = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
    if type(value) is not kind:
        raise TypeError(names[typing.cast("type", kind)])
    if kind is float and not math.isfinite(typing.cast("float", value)):
        raise TypeError("a finite number")
    return value


def _build(section: type, values: Mapping[str, Any]) -> object:
    hints = typing.get_type_hints(section)
    return section(
        **{
            name: _build(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
            for name, value in values.items()
        }
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _choice_problems(flat: Mapping[str, Any], choices: Choices) -> Iterator[str]:
    for setting, allowed in choices.items():
        value = flat.get(setting, ())
        for name in value if isinstance(value, tuple) else (value,):
            if name not in allowed:
                close = difflib.get_close_matches(name, allowed, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                yield f"{setting}: {name!r} is not one of {', '.join(sorted(allowed))}{hint}"


def _range_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    for setting, (bound, is_allowed) in _LOWER_BOUNDS.items():
        value = flat.get(setting)
        if value is not None and (value < bound or (value == bound and not is_allowed)):
            yield f"{setting}={value} must be {'at least' if is_allowed else 'above'} {bound}"
    for setting, (bound, is_allowed) in _UPPER_BOUNDS.items():
        value = flat.get(setting)
        if value is not None and (value > bound or (value == bound and not is_allowed)):
            yield f"{setting}={value} must be {'at most' if is_allowed else 'below'} {bound}"


def _cross_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """Rules between settings; a rule is skipped where one of its settings has no valid value."""

    def get(*names: str) -> tuple[Any, ...] | None:
        found = tuple(flat.get(name) for name in names)
        return None if None in found else found

    if got := get("rewards.names"):
        yield from _objective_problems(got[0], flat)
    if (got := get("advantage.min_count", "advantage.buffer_size")) and got[0] > got[1]:
        yield (
            f"advantage.min_count={got[0]} must be at most advantage.buffer_size={got[1]}, "
            "or no prompt ever has enough; lower it"
        )
    stages = ("evolution.warmup_generations", "evolution.evolutionary_generations")
    if (got := get(*stages)) and sum(got) == 0:
        yield f"{' + '.join(stages)} must be at least 1; raise one"
    if (got := get("evolution.num_agents", "sample.guidance_scale")) and got[0] > 0:
        rows = got[0] * (1 if got[1] == 1 else 2)
        for setting in ("sample.rows_per_pass", "train.rows_per_pass"):
            value = flat.get(setting)
            if value is not None and 0 < value < rows:
                yield (
                    f"{setting}={value} must be at least {rows}, one sample of each agent with its "
                    "guidance; raise it, or lower evolution.num_agents"
                )
    if (got := get("sample.negative_prompt", "sample.guidance_scale")) and got[0] and got[1] == 1:
        yield (
            f"sample.negative_prompt={got[0]!r} has no effect at sample.guidance_scale=1; raise "
            "the guidance or leave the prompt empty"
        )
    yield from _update_problems(flat)
    yield from _run_name_problems(flat.get("run_name") or "")


def _update_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """Rules between the size of a rollout and what an update does with it."""
    prompts, images = flat.get("sample.prompts_per_iteration"), flat.get("sample.images_per_prompt")
    updates = flat.get("train.updates_per_epoch")
    if prompts and images and updates and min(prompts, images, updates) > 0:
        samples = prompts * images
        if samples % updates:
            fits = [n for n in range(1, samples + 1) if samples % n == 0]
            yield (
                f"train.updates_per_epoch={updates} must divide the {samples} images of an agent "
                "(sample.prompts_per_iteration x sample.images_per_prompt); "
                f"try {_listing(fits)}"
            )
    skipped, steps = flat.get("train.skip_last_steps"), flat.get("sample.num_steps")
    if skipped is not None and steps is not None and skipped >= steps > 0:
        yield (
            f"train.skip_last_steps={skipped} must be below sample.num_steps={steps}, or no step "
            "is trained; lower it"
        )


def _run_name_problems(run_name: str) -> Iterator[str]:
    if run_name in {".", ".."} or any(c in run_name for c in "/\\\0") or len(run_name) > 200:
        yield (
            f"run_name={run_name!r} must be a plain folder name of at most 200 characters; "
            "put folders into logdir"
        )


def _objective_problems(names: tuple[str, ...], flat: Mapping[str, Any]) -> Iterator[str]:
    agents = flat.get("evolution.num_agents")
    if len(names) < 2:
        yield f"rewards.names={names} must name at least 2 objectives to trade off"
    if len(set(names)) < len(names):
        yield f"rewards.names={names} must not repeat an objective"
    if agents is not None and 0 < agents < len(names):
        yield (
            f"evolution.num_agents={agents} must be at least the {len(names)} objectives, "
            "so that each has an agent of its own; raise it"
        )
    directions = flat.get("evolution.num_directions")
    if directions is not None and 2 <= directions < len(names):
        yield (
            f"evolution.num_directions={directions} must be at least the {len(names)} objectives; "
            "raise it"
        )
    reference, ideal = flat.get("rewards.reference", ()), flat.get("rewards.ideal", ())
    for setting, point in (("rewards.reference", reference), ("rewards.ideal", ideal)):
        if point and len(point) != len(names):
            yield f"{setting}={point} must have one number for each of {names}, or be empty"
    if bool(reference) != bool(ideal):
        yield "rewards.reference and rewards.ideal must be given together, or both left empty"
    for name, low, high in zip(names, reference, ideal, strict=False):
        if low >= high:
            yield f"rewards.reference of {name} ({low}) must be below its rewards.ideal ({high})"


def _listing(numbers: Collection[int]) -> str:
    shown = [str(n) for n in list(numbers)[:8]]
    return ", ".join(shown[:-1]) + " or " + shown[-1] if len(shown) > 1 else shown[0]
