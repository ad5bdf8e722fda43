"""Rules between settings: problems that no single value causes.

Every rule takes the flat settings and yields a sentence for each problem: the setting, its value,
the rule, what to do. A value that is wrong by itself is left out of the flat settings, so that it
is reported once.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from config.base import Settings
from config.settings.declared import defaults_of
from config.settings.derived import objective_name, task_counts
from config.settings.unknown import unknown_setting

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping


def rule_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """Rules between settings; a rule is skipped where one of its settings has no valid value."""

    def get(*names: str) -> tuple[Any, ...] | None:
        found = tuple(flat.get(name) for name in names)
        return None if None in found else found

    if got := get("rewards.names"):
        yield from _objective_problems(got[0], flat)
    stages = ("evolution.warmup_generations", "evolution.evolutionary_generations")
    if (got := get(*stages)) and sum(got) == 0:
        yield f"{' + '.join(stages)} must be at least 1; raise one"
    if (got := get("evolution.start", stages[0])) == ("soup", 0):
        yield (
            "evolution.warmup_generations=0 leaves a soup without ingredients; raise it, or set "
            "evolution.start=even_weights"
        )
    if (got := get("evolution.num_agents", "sample.guidance_scale")) and got[0] > 0:
        rows = got[0] * (1 if got[1] == 1 else 2)
        for setting in ("sample.rows_per_pass", "train.rows_per_pass"):
            value = flat.get(setting)
            if value is not None and 0 < value < rows:
                yield (
                    f"{setting}={value} must be at least {rows}, one sample of each agent with its "
                    "guidance; raise it, or lower evolution.num_agents"
                )
    yield from _guidance_problems(flat)
    yield from _pretrained_problems(flat)
    yield from _agent_problems(flat)
    yield from _update_problems(flat)
    yield from _guard_problems(flat)
    yield from _run_name_problems(flat.get("run_name") or "")
    yield from _forced_problems(flat)


def _guidance_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """Rules for settings that have no effect without guidance."""
    if flat.get("sample.guidance_scale") != 1:
        return
    without = "has no effect at sample.guidance_scale=1; raise the guidance or"
    if prompt := flat.get("sample.negative_prompt"):
        yield f"sample.negative_prompt={prompt!r} {without} leave the prompt empty"
    if rescale := flat.get("sample.guidance_rescale"):
        yield f"sample.guidance_rescale={rescale} {without} set it to 0"


def _pretrained_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """Rules between the settings of the base model."""
    if flat.get("pretrained.lora") and flat.get("pretrained.lora_scale") == 0:
        yield "pretrained.lora_scale=0 leaves pretrained.lora without effect; raise it"
    if flat.get("pretrained.zero_snr") == "yes" and flat.get("pretrained.prediction_type") == (
        "epsilon"
    ):
        yield (
            "pretrained.zero_snr=yes does not go with pretrained.prediction_type=epsilon: of pure "
            "noise it cannot say what the picture is; change one of them"
        )
    spacing, sampler = flat.get("pretrained.timestep_spacing"), flat.get("sample.sampler")
    if spacing and sampler in {"lcm", "tcd"}:
        yield (
            f"pretrained.timestep_spacing={spacing} has no effect on sample.sampler={sampler}, "
            "which has timesteps of its own; leave it empty, or set sample.sampler=ddim or euler_a"
        )
    config, model = flat.get("pretrained.single_file_config"), flat.get("pretrained.model") or ""
    if config and not re.search(r"\.safetensors(@[^/]+)?$", model):
        yield (
            f"pretrained.single_file_config={config!r} has no effect: pretrained.model={model!r} "
            "is not a .safetensors file; leave it empty"
        )


def process_problems(flat: Mapping[str, Any], count: int) -> Iterator[str]:
    """Rules between the settings and the number of processes, which only a launcher knows.

    Args:
        flat: settings that are valid by themselves.
        count: P.
    """
    samples = flat["sample.prompts_per_iteration"] * flat["sample.images_per_prompt"]
    images = samples // flat["train.updates_per_epoch"]
    start, num_objectives = flat["evolution.start"], len(flat["rewards.names"])
    for num in task_counts(start, flat["evolution.num_agents"], num_objectives):
        members = count // math.gcd(num, count)
        if images < members:
            yield (
                f"train.updates_per_epoch={flat['train.updates_per_epoch']} leaves {images} of an "
                f"agent's {samples} images to an update, fewer than the {members} processes that "
                f"share it while there are {num} agents; lower it, draw more images, or start a "
                f"number of processes that has more divisors in common with {num}"
            )


def _agent_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """Rules between the kind of agents and what the search does with them."""
    if flat.get("agents.kind") != "conditioned":
        return
    for setting, only in (("strategy", "fixed_weights"), ("start", "even_weights")):
        value = flat.get(f"evolution.{setting}", only)
        if value != only:
            yield (
                f"evolution.{setting}={value} needs agents that have policies of their own; with "
                f"agents.kind=conditioned, set evolution.{setting}={only}"
            )


def _guard_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """Rules between guards, their limits and the objectives."""
    names, drops = flat.get("guards.names", ()), flat.get("guards.max_drops", ())
    objectives = {objective_name(name) for name in flat.get("rewards.names", ())}
    for name in names:
        if objective_name(name) in objectives:
            yield f"guards.names: {name!r} is an objective; guard what is not optimised"
    if len({objective_name(name) for name in names}) < len(names):
        yield (
            f"guards.names={names} must not repeat a guard; `file.py:name` counts as `name`, and "
            "`kind:argument` as the end of its argument"
        )
    if drops and len(drops) != len(names):
        yield f"guards.max_drops={drops} must have one number for each of {names}, or be empty"
    if any(drop < 0 for drop in drops):
        yield f"guards.max_drops={drops} must not be negative; 0 allows no drop at all"


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
    yield from _step_problems(flat)
    yield from _single_pass_problems(flat)
    yield from _reward_gradient_problems(flat)


def _single_pass_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """Rules for gradients that are taken before rewards are known."""
    if not flat.get("train.single_pass"):
        return
    needed = {
        "update_rule": "ddpo",
        "num_inner_epochs": 1,
        "updates_per_epoch": 1,
        "kl_coef": 0,
        "timestep_fraction": 1,
    }
    for name, only in needed.items():
        value = flat.get(f"train.{name}", only)
        if value != only:
            yield (
                f"train.{name}={value} does not go with train.single_pass, which takes the "
                "gradients of all samples while they are drawn, for one optimiser step of ddpo; "
                f"set train.{name}={only}, or train.single_pass=False"
            )


def _reward_gradient_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """Rules for gradients that are taken at the policy that sampled."""
    black_boxes, names = flat.get("rewards.black_boxes", ()), flat.get("rewards.names")
    is_chosen = flat.get("train.update_rule") == "reward_gradient"
    if black_boxes and not is_chosen:
        yield (
            f"rewards.black_boxes={black_boxes} has no effect: only "
            "train.update_rule=reward_gradient follows gradients; leave it empty"
        )
    if not is_chosen:
        return
    for name in black_boxes:
        if names is not None and name not in names:
            yield f"rewards.black_boxes: {name!r} is not one of rewards.names={names}"
    needed = {
        "train.num_inner_epochs": 1,
        "train.updates_per_epoch": 1,
        "advantage.normalisation": "frozen",
    }
    for setting, only in needed.items():
        value = flat.get(setting, only)
        if value != only:
            yield (
                f"{setting}={value} does not go with train.update_rule=reward_gradient, which "
                "takes one optimiser step per rollout along rewards divided by their spread under "
                f"the base model; set {setting}={only}"
            )
    steps, drawn = flat.get("train.gradient_steps"), flat.get("sample.num_steps")
    if steps is not None and drawn is not None and steps > drawn:
        yield (
            f"train.gradient_steps={steps} must be at most sample.num_steps={drawn}, the steps "
            "there are; lower it"
        )


def _step_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """Rules for the steps that a policy gradient is taken on."""
    rule = flat.get("train.update_rule", "reward_gradient")
    if flat.get("sample.num_steps") == 1 and rule != "reward_gradient":
        yield (
            f"sample.num_steps=1 does not go with train.update_rule={rule}: a single step ends in "
            "the picture, so there is no choice of noise to learn from; draw with "
            "3 steps or more, or set train.update_rule=reward_gradient"
        )


def _run_name_problems(run_name: str) -> Iterator[str]:
    if (
        run_name in {".", ".."}
        or any(c in run_name for c in "/\\\0")
        or len(run_name.encode()) > 200
    ):
        yield (
            f"run_name={run_name!r} must be a plain folder name of at most 200 bytes; "
            "put folders into logdir"
        )


def _forced_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    for name in flat.get("resume_force") or ():
        if name not in defaults_of(Settings):
            yield f"resume_force: {unknown_setting(name, defaults_of(Settings))}"


def _objective_problems(names: tuple[str, ...], flat: Mapping[str, Any]) -> Iterator[str]:
    agents, weights = flat.get("evolution.num_agents"), flat.get("evolution.weights", ())
    if not names:
        yield "rewards.names=() must name at least 1 objective"
    if len({objective_name(name) for name in names}) < len(names):
        yield (
            f"rewards.names={names} must not repeat an objective; one of module:function is "
            "called by its function, one of kind:argument by the end of its argument"
        )
    if agents is not None and 0 < agents < len(names) and not weights:
        yield (
            f"evolution.num_agents={agents} must be at least the {len(names)} objectives, so that "
            "each has an agent of its own; raise it, or name the weights that you want as "
            "evolution.weights"
        )
    if names and agents:
        yield from _weights_problems(weights, agents, len(names), flat)
    yield from _point_problems(names, flat)


def _weights_problems(
    weights: tuple[float, ...], agents: int, num_objectives: int, flat: Mapping[str, Any]
) -> Iterator[str]:
    """Rules for weights that are named, or for the only weights there are."""
    if weights and len(weights) != agents * num_objectives:
        fits = len(weights) // num_objectives
        more = f", or evolution.num_agents={fits}" if fits * num_objectives == len(weights) else ""
        yield (
            f"evolution.weights={weights} must be {num_objectives} numbers, one per objective, for "
            f"each of evolution.num_agents={agents}; give {agents * num_objectives}{more}"
        )
    elif any(weight < 0 for weight in weights) or any(
        not any(weights[i : i + num_objectives]) for i in range(0, len(weights), num_objectives)
    ):
        yield f"evolution.weights={weights} must not be negative, nor all 0 for an agent"
    if not weights and num_objectives > 1:
        return
    why = "evolution.weights names what is trained" if weights else "one objective has one weight"
    strategy, kind = flat.get("evolution.strategy"), flat.get("agents.kind")
    if strategy in {"prediction_guided", "random"}:
        yield (
            f"evolution.strategy={strategy} chooses weights, but {why}; set "
            "evolution.strategy=fixed_weights"
        )
    if kind == "conditioned":
        yield f"agents.kind=conditioned draws weights, but {why}; set agents.kind=population"
    if num_objectives == 1 and flat.get("evolution.start") == "soup":
        yield "evolution.start=soup blends objectives, and there is one; set it to even_weights"


def _point_problems(names: tuple[str, ...], flat: Mapping[str, Any]) -> Iterator[str]:
    """Rules between the objectives and their declared points and scales."""
    reference, ideal = flat.get("rewards.reference", ()), flat.get("rewards.ideal", ())
    scales = flat.get("rewards.scales", ())
    if any(scale <= 0 for scale in scales):
        yield f"rewards.scales={scales} must be above 0; rewards are divided by them"
    points = {"rewards.reference": reference, "rewards.ideal": ideal, "rewards.scales": scales}
    for setting, point in points.items():
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
