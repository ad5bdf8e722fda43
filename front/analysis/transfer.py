"""Measures a front again under the samplers, steps, guidance and strengths that people use."""

from __future__ import annotations

import inspect
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from ddpo.agents.adapter import Adapter
from ddpo.files import write_json
from ddpo.steps import DISTILLED
from front.analysis.judge import Judge, check_same
from front.errors import ChoiceError, FrontError
from front.record import NAME, FrontRecord
from front.settings import settings_of
from front.setups import Setup, transferred
from morl.types import BASE_POLICY, PolicyId
from run.progress import named_bar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ddpo.model.stable_diffusion import FrozenDiffusion
    from front.analysis.samplers import SetupSampler
    from front.front import Front
    from front.setups import SetupRecord
    from morl.types import Array

logger = logging.getLogger(__name__)

_STRENGTHS = (0.75, 0.5)
_STEPS = (20, 30)  # the first that the run does not have itself
_GUIDANCE = {"emoji64-sd": 3.0, "emoji-sd": 3.0}  # where a pipeline's default is too high


def setup_of(front: Front) -> Setup:
    """The way of drawing by which a front was judged.

    Raises:
        FrontError: if the run's settings cannot be read, or its model is for one sampler only.
    """
    sample = settings_of(front).evaluation_sample
    own = front.model.sampler if front.model else "ddim"
    if own in DISTILLED:
        raise FrontError(
            f"{front.path} was drawn with {own}, for which its base model was distilled: there are "
            "no other samplers to compare it with"
        )
    is_euler = own == "euler_a"
    return Setup(
        sampler="euler_a" if is_euler else "ddim",
        eta=0.0 if is_euler else sample.eta,
        steps=sample.num_steps,
        guidance=sample.guidance_scale,
    )


def usual_setups(own: Setup, guidance: float) -> tuple[Setup, ...]:
    """The run's own setup, then others that people draw with: each changes one thing.

    Args:
        own: the run's.
        guidance: the base model's usual one.
    """
    steps = next(count for count in _STEPS if count != own.steps)
    setups = [
        own,
        replace(own, eta=0.0),
        *(replace(own, sampler=name, eta=0.0) for name in ("euler_a", "dpmpp_2m")),
        replace(own, steps=steps),
        *(replace(own, guidance=scale) for scale in (1.0, guidance)),
        *(replace(own, strength=strength) for strength in _STRENGTHS),
    ]
    return tuple(dict.fromkeys(setups))


def measure_transfer(
    front: Front,
    setups: Sequence[Setup] = (),
    num_images: int = 0,
    *,
    model: str = "",
    device: str = "",
    rows_per_pass: int = 0,
) -> tuple[SetupRecord, ...]:
    """Measure the policies and the base model under several setups, on the same prompts and seeds.

    Args:
        front: of the run.
        setups: besides the run's own, which always comes first; none for the `usual_setups`. A
            usual setup that the model cannot draw with is left out, and logged.
        num_images: of each policy; 0 for the whole report set.
        model: where the base model is now; empty where it was.
        device: empty for a GPU if there is one.
        rows_per_pass: UNet rows at a time; 0 as many as in the run.

    Raises:
        UserError: if the run's parts cannot be used, its policies score differently now, or a setup
            does not fit the model.
    """
    if all(policy.id == BASE_POLICY for policy in front.policies):
        raise FrontError("the front is the base model alone: there is no gain to measure")
    own = setup_of(front)
    judge = Judge(front, model, device, rows_per_pass, num_images)
    try:
        if setups:
            drawings = {each: judge.drawing(each) for each in dict.fromkeys((own, *setups))}
        else:
            drawings = _possible(judge, usual_setups(own, _usual_guidance(judge.model, front)))
        rewards = _rewards(front, judge, drawings)
    finally:
        judge.close()
    return tuple(
        transferred(each, front.objectives, rewards[own], rewards[each]) for each in drawings
    )


def _possible(judge: Judge, setups: Sequence[Setup]) -> dict[Setup, SetupSampler]:
    drawings = {}
    for setup in setups:
        try:
            drawings[setup] = judge.drawing(setup)
        except ChoiceError as error:
            logger.warning("left out: %s", error)
    return drawings


def _usual_guidance(model: FrozenDiffusion, front: Front) -> float:
    """Of the base model: as published, or the default of its pipeline."""
    default = inspect.signature(type(model.pipe).__call__).parameters["guidance_scale"].default
    return _GUIDANCE.get(front.settings["pretrained"]["model"], float(default))


def _rewards(
    front: Front, judge: Judge, drawings: Mapping[Setup, SetupSampler]
) -> dict[Setup, dict[PolicyId, Array]]:
    """Rewards (N, M) of every policy, and of the base model, under every setup."""
    read = {policy.id: Adapter.read(policy.file) for policy in front.policies}
    base = Adapter.blend([(next(iter(read.values())), 0.0)])
    found: dict[Setup, dict[PolicyId, Array]] = {}
    without: dict[Setup, Array] = {}  # the base model's, which has no strength
    with named_bar("measuring setups", len(drawings) * len(read)) as bar:
        for setup, drawing in drawings.items():
            plain = replace(setup, strength=1.0)
            adapters = {
                name: Adapter.blend([(each, setup.strength)]) for name, each in read.items()
            }
            if plain not in without:
                adapters[BASE_POLICY] = base
            measured = judge.measure(list(adapters.values()), bar.update, drawing)
            evaluations = dict(zip(adapters, measured, strict=True))
            if not found and judge.is_whole:
                check_same(front, {str(name): each for name, each in evaluations.items()})
            found[setup] = {name: each.rewards.numpy() for name, each in evaluations.items()}
            if plain not in without:
                without[plain] = found[setup][BASE_POLICY]
            found[setup][BASE_POLICY] = without[plain]
    return found


def publish_transfer(front: Front, records: Sequence[SetupRecord]) -> None:
    """Put a measurement into `front.json`, in the place of an earlier one.

    Raises:
        FrontError: if the run directory cannot be written to.
    """
    try:
        record = replace(FrontRecord.read(front.path), transfer=tuple(records))
        write_json(front.path / NAME, record.to_json())
    except OSError as error:
        raise FrontError(f"{front.path} cannot be written to: {error}") from error
