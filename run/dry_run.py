"""What a run would do and need, without training, weights or a network: `mo_train.py --dry_run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import CLIPTokenizer

from config.settings.errors import UserError
from ddpo.assets import resolve_model
from ddpo.cost.footprint import (
    KNOWN_MODELS,
    architecture_of,
    counted,
    measure_footprint,
    plan_of,
    schedule_of,
)
from ddpo.cost.plan import (
    CARDS,
    UTILISATION,
    Plan,
    expected_memory,
    hours,
    reward_flops,
    rows_that_fit,
    unet_flops,
)
from ddpo.cost.rewards import BESIDE, reward_models
from ddpo.lengths import MODEL, all_prompts, length_notes
from ddpo.model.families import Frame, family_of
from ddpo.model.loading import configuration_source, find_model, read_lora, taken_for
from ddpo.model.source import repository_and_file, source_of
from ddpo.model.stable_diffusion import reading_of
from ddpo.prompts import split_prompts
from ddpo.rewards import PICTURE_GUARDS, known_entry, parts_of
from ddpo.rewards.image_batch import BatchReward
from ddpo.rewards.lookup import build_reward
from ddpo.rules import policy_gradient_steps
from ddpo.steps import described
from run.progress import route_logs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from config.base import PretrainedSettings, RewardSettings, Settings
    from ddpo.cost.plan import Footprint, Memory
    from ddpo.prompts import PromptSplit

_BUDGETS_GB = (10, 24, 80)
_CPU = torch.device("cpu")
_BROKEN = "cannot be built"
# What a diffusers pipeline loads: part -> file, without its suffix.
_WEIGHT_FILES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
# LoRAs of the recipes: 67.5 and 197 million numbers of half precision, by their model cards.
_LORA_BYTES = {
    "latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors": 0.135e9,
    "ByteDance/SDXL-Lightning/sdxl_lightning_4step_lora.safetensors": 0.394e9,
}


def dry_run(settings: Settings) -> str:
    """The report, as text.

    Set HF_HUB_OFFLINE=1 before anything of the hub is imported, as `mo_train.py` does, or rewards
    whose weights are missing will download them.

    Raises:
        UserError: for everything that a run would refuse: a reward that cannot be built, a LoRA
            that cannot be merged, steps that the model lacks or that cannot be trained. Also if
            only a download would tell the architecture of the model.
    """
    route_logs()
    prompts = split_prompts(settings.prompts)
    if settings.pretrained.lora:
        _check_lora(settings.pretrained)
    taken, steps = _taken_for(settings), _steps(settings)
    plan = plan_of(settings, len(prompts.train))
    footprint = measure_footprint(settings)
    texts = all_prompts(prompts, settings.sample.negative_prompt)
    sections = {
        "Objectives": _objectives(settings, texts),
        "Prompts": (*_prompts(prompts), *_cut_by_model(settings.pretrained, texts)),
        "Images and UNet rows": _counts(settings, plan),
        "Model": (taken, *steps, *_model(settings, footprint)),
        "Memory of one device": _memory(counted(settings), plan, footprint),
        "Time": _time(plan, footprint),
        "Downloads": _downloads(settings, footprint),
    }
    return "\n".join(
        line
        for title, lines in sections.items()
        for line in (title, *(f"  {line}" for line in lines))
    )


def reward_state(name: str, settings: RewardSettings, prompts: Sequence[str] = ()) -> str:
    """Whether the reward can be built here and now: "ready", or the reason why not.

    Args:
        name: of the reward.
        settings: of all rewards.
        prompts: the text also says which of these a ready reward cuts.
    """
    try:
        reward, _ = build_reward(name, settings, _CPU)
    except OSError as error:  # also what the hub raises for files that are not in its cache
        parts = parts_of(name, settings.sources).values()
        first = str(error).splitlines()[0] if str(error) else repr(error)
        needed = ", ".join(str(part) for part in parts)
        return f"needs a download: {needed}" if needed else f"{_BROKEN}: {first}"
    except (UserError, ValueError, RuntimeError, ImportError) as error:
        return f"{_BROKEN}: {error}"
    cut = reward.cut(prompts) if isinstance(reward, BatchReward) else []
    return "; ".join(["ready", *length_notes({"it": cut}, prompts)])


def _objectives(run: Settings, prompts: Sequence[str]) -> list[str]:
    """The lines on objectives and guards.

    Raises:
        UserError: naming the ones that a run could not build.
    """
    settings = run.rewards
    guards = [name for name in run.guards.names if name not in PICTURE_GUARDS]
    states = {name: reward_state(name, settings, prompts) for name in (*settings.names, *guards)}
    broken = [f"{name} {state}" for name, state in states.items() if state.startswith(_BROKEN)]
    if broken:
        raise UserError("; ".join(broken))
    return [
        *_objective_lines(settings, states),
        *(f"guard {name}: {states[name]}" for name in guards),
    ]


def _objective_lines(settings: RewardSettings, states: Mapping[str, str]) -> Iterator[str]:
    points = settings.reference and settings.ideal
    for index, name in enumerate(settings.names):
        entry = known_entry(name)
        unit = f" [{entry.unit}]" if entry else ""
        line = f"{name}{unit}: {states[name]}"
        if points:
            line += f"; z = 0 at {settings.reference[index]:g}, 1 at {settings.ideal[index]:g}"
        yield line
    if not points:
        yield "z = 0 and 1 are measured on the base model first: its mean -+ 3 standard deviations"


def _prompts(prompts: PromptSplit) -> Iterator[str]:
    yield from prompts.summary()
    yield from prompts.notes


def _check_lora(pretrained: PretrainedSettings) -> None:
    """Refuse a LoRA that is on this machine and cannot be merged, whatever the model."""
    try:
        read_lora(pretrained)
    except UserError as error:
        if not isinstance(error.__cause__, LocalEntryNotFoundError):  # else it is a download
            raise


def _cut_by_model(settings: PretrainedSettings, prompts: Sequence[str]) -> Iterator[str]:
    """Notes on prompts that the model cuts, if its tokenizer is on this machine."""
    folder = Path(resolve_model(configuration_source(settings))) / "tokenizer"
    if folder.is_dir():
        tokenizer, reading = CLIPTokenizer.from_pretrained(folder), reading_of(settings)
        cut = [prompt for prompt in prompts if reading.cuts(tokenizer, prompt)]
        yield from length_notes({MODEL: cut}, prompts)


def _counts(settings: Settings, plan: Plan) -> Iterator[str]:
    evolution = settings.evolution
    yield (
        f"{evolution.num_generations} generations of {evolution.iterations_per_generation} "
        f"iterations; {plan.num_agents} agents x {plan.images_per_agent:,} = "
        f"{plan.images_per_iteration:,} images per iteration"
    )
    yield (
        f"images: {plan.train_images:,} to train on, "
        f"{plan.calibration_images:,} to calibrate, "
        f"{plan.selection_images:,} for selection, {plan.report_images_per_policy:,} per policy "
        f"of the final front (about {plan.report_policies}, {plan.report_images:,})"
    )
    yield (
        f"UNet rows per image: {plan.sample_rows_per_image:,} to sample without gradient, "
        f"{plan.evaluation_rows_per_image:,} in evaluations, "
        f"{plan.train_rows_per_image:,} with gradient"
        + (f", {plan.base_rows_per_image:,} more" if plan.base_rows_per_image else "")
    )
    yield f"UNet rows in all: {plan.sample_rows:,} to sample, {plan.train_rows:,} with gradient"
    per_iteration = plan.optimiser_steps // plan.num_iterations
    yield (
        f"optimiser steps of an agent: {per_iteration} per iteration, "
        f"{plan.optimiser_steps:,} in all"
    )


def _taken_for(settings: Settings) -> str:
    """The line that says what the model is taken for.

    Raises:
        UserError: if its files, as far as they are here, or its schedule cannot be used.
    """
    pretrained = settings.pretrained
    found = find_model(pretrained)
    architecture = architecture_of(pretrained)
    scheduler = found.settled(architecture["scheduler"])
    unet, vae = architecture["unet"], architecture["vae"]
    layers = {
        name: part["num_hidden_layers"] for name, part in architecture.items() if "text" in name
    }
    family_of(layers).check(layers, reading_of(pretrained))
    frame = Frame.of_configs(unet, vae, pretrained.height, pretrained.width)
    return taken_for(pretrained, found, unet, scheduler, frame)


def _steps(settings: Settings) -> list[str]:
    """How pictures are drawn, and which steps are trained.

    Raises:
        UserError: if the model has no such steps, or none that can be trained.
    """
    pretrained, sample = settings.pretrained, settings.training_sample
    schedule_of(pretrained, settings.evaluation_sample)
    schedule = schedule_of(pretrained, sample)
    return described(schedule, policy_gradient_steps(settings, schedule))


def _model(settings: Settings, footprint: Footprint) -> Iterator[str]:
    yield (
        f"{settings.pretrained.model}, {settings.pretrained.dtype}: UNet "
        f"{footprint.unet_parameters:,}, VAE {footprint.vae_parameters:,}, text "
        f"{footprint.text_parameters:,} parameters"
    )
    size = 4 * footprint.adapter_parameters / 1e6
    yield (
        f"adapter of rank {settings.policy_adapter.rank}: {footprint.adapter_parameters:,} "
        f"parameters, {size:.1f} MB on disk, {4 * size:.1f} MB per agent while it trains"
    )
    yield (
        f"a UNet row: {footprint.sample_flops / 1e12:.3g} TFLOP forward, "
        f"{footprint.train_flops / 1e12:.3g} with gradient"
    )


def _memory(settings: Settings, plan: Plan, footprint: Footprint) -> Iterator[str]:
    memory = expected_memory(settings, plan, footprint)
    yield (
        f"expected peak {_gb(memory.peak)}: weights {_gb(memory.weights)} + models of rewards "
        f"{_gb(memory.rewards)} + adapters {_gb(memory.adapters)} + rollout {_gb(memory.rollout)}"
        + (f" + noise to learn from {_gb(memory.measures)}" if memory.measures else "")
    )
    yield (
        f"+ the largest of sampling {_gb(memory.sampling)} or decoding {_gb(memory.decoding)} with "
        f"scoring {_gb(memory.scoring)}, training {_gb(memory.training)}, joining the rollout "
        f"{_gb(memory.rollout)}"
    )
    yield from _not_counted(settings)
    yield from _fits(settings, memory, footprint)


def _not_counted(settings: Settings) -> Iterator[str]:
    """The models whose memory and time are unknown here."""
    rewards = settings.rewards
    names = [*rewards.names, *settings.guards.names]
    unknown = [each for each in names if ":" in each or each in rewards.remote_names]
    if unknown:
        yield f"not counted: {', '.join(unknown)}"
    if rewards.device not in BESIDE:
        yield f"not counted: rewards and guards, which run on {rewards.device}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _fits(settings: Settings, memory: Memory, footprint: Footprint) -> Iterator[str]:
    now = settings.train.rows_per_pass
    most = {size: rows_that_fit(settings, memory, footprint, size * 1e9) for size in _BUDGETS_GB}
    shown = ", ".join(f"{size} GB: {rows or 'none'}" for size, rows in most.items())
    yield f"train.rows_per_pass={now}; the most that fit, with a tenth kept free: {shown}"


def _time(plan: Plan, footprint: Footprint) -> Iterator[str]:
    scoring = reward_flops(plan, footprint.rewards)
    flops = unet_flops(plan, footprint) + scoring
    needed = {card: hours(flops, peak, UTILISATION) for card, peak in CARDS.items()}
    shown = ", ".join(f"{card} {_duration(spent)}" for card, spent in needed.items())
    yield (
        f"{flops / 1e15:,.3g} PFLOP, {scoring / flops:.1%} of it in models of rewards and guards"
    )
    yield f"one card at {UTILISATION:.0%} of its bfloat16 peak (an H100's share): {shown}"
    card = "RTX 4090"
    parts = {
        "calibration": plan.calibration_images,
        "selection": plan.selection_images,
        "the report set": plan.report_images,
    }
    each = []
    for name, images in parts.items():
        spent = hours(plan.judging_flops(images, footprint), CARDS[card], UTILISATION)
        each.append(f"{name} {_duration(spent)}")
    yield f"of which, on an {card}: {', '.join(each)}; training is the rest"


def _duration(spent: float) -> str:
    """Hours in a fitting unit."""
    if spent < 1:
        return f"{60 * spent:.0f} min" if spent > 1 / 60 else "under a minute"
    return f"{spent:,.0f} h" if spent >= 10 else f"{spent:.1f} h"


def _downloads(settings: Settings, footprint: Footprint) -> Iterator[str]:
    pretrained = settings.pretrained
    is_here = Path(resolve_model(source_of(pretrained.model).name)).exists()
    if is_here or find_model(pretrained).file is not None:
        yield "none for the base model: it is on this machine"
    else:
        yield _model_download(pretrained, footprint)
    if pretrained.vae and not Path(resolve_model(source_of(pretrained.vae).name)).exists():
        yield f"{pretrained.vae}: the VAE"
    if pretrained.lora and not Path(resolve_model(pretrained.lora)).exists():
        source = source_of(pretrained.lora)
        repository, file = repository_and_file(source.name)
        if file is not None and _is_cached(repository, file, source.revision):
            yield "none for the LoRA: it is in the hub's cache"
        else:
            file = file or "its .safetensors file"
            size = _LORA_BYTES.get(pretrained.lora)
            known = f", {_gb(size)}" if size else ""
            yield f"{repository}: {file}, the LoRA that is merged into the base model{known}"
    yield from _reward_downloads(settings)


def download_bytes(settings: Settings, footprint: Footprint) -> float:
    """Bytes that a run downloads on a machine that has nothing but the project."""
    if Path(resolve_model(settings.pretrained.model)).exists():
        return 0
    names = [*settings.rewards.names, *settings.guards.names]
    rewards = sum(model.file_bytes for model in reward_models(names, settings.rewards).values())
    lora = _LORA_BYTES.get(settings.pretrained.lora, 0)
    return _model_bytes(settings.pretrained, footprint) + lora + rewards


def _model_bytes(pretrained: PretrainedSettings, footprint: Footprint) -> float:
    parts = footprint.unet_parameters + footprint.vae_parameters + footprint.text_parameters
    return parts * (2 if pretrained.variant == "fp16" else 4)


def _reward_downloads(settings: Settings) -> Iterator[str]:
    """The models of rewards and guards that are not on this machine."""
    names = [*settings.rewards.names, *settings.guards.names]
    found = {}
    for source, model in reward_models(names, settings.rewards).items():
        if not Path(source).exists():
            repository, file = repository_and_file(source)
            if not _is_cached(repository, file or "model.safetensors", None):
                found[source] = model.file_bytes
    if found:
        shown = ", ".join(f"{source} {_gb(size)}" for source, size in found.items())
        yield f"for rewards and guards: {shown}; {_gb(sum(found.values()))} in all"


def _model_download(pretrained: PretrainedSettings, footprint: Footprint) -> str:
    variant = f".{pretrained.variant}" if pretrained.variant else ""
    files = [f"{part}/{file}{variant}.safetensors" for part, file in _WEIGHT_FILES.items()]
    name, revision = source_of(pretrained.model)
    if KNOWN_MODELS.get(name) != "sdxl":
        files = [file for file in files if not file.startswith("text_encoder_2")]
    missing = [file for file in files if not _is_cached(name, file, revision)]
    if not missing:
        return "none for the base model: it is in the hub's cache"
    size = _model_bytes(pretrained, footprint)
    advice = "; pretrained.variant=fp16 halves it" if name in KNOWN_MODELS and not variant else ""
    return f"{pretrained.model}: {', '.join(missing)}; {_gb(size)} in all{advice}"


def _is_cached(model: str, file: str, revision: str | None) -> bool:
    return isinstance(try_to_load_from_cache(model, file, revision=revision), str)
