"""Publishes a run: the archive, evaluated again on the report set, with plots and pictures.

The archive kept the luckiest of many noisy readings, so its own numbers flatter it. The report set
has other seeds, and other prompts where there are enough. The search never saw it: it only sets
aside policies that another one dominates on it.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np

from config.settings.errors import UserError
from config.settings.terminal import counted, near, typed_command
from ddpo.agents.adapter import Adapter, adapter_of, policy_of
from ddpo.ddim import name_of
from ddpo.model.loading import configuration_source, read_lora
from ddpo.model.source import source_of
from ddpo.model.stable_diffusion import FrozenDiffusion
from front.analysis.measure import recipes_between, spread_points, summarise
from front.analysis.publish import publish_analysis
from front.analysis.values import ANALYSIS, DENSE_PLOT
from front.drawing_code import shared_name
from front.front import Front
from front.member import Guard, GuardValue
from front.pictures.generate import to_picture
from front.pictures.panels import front_panel, generation_panel
from front.pictures.parameters import describe, png_text, sampler_of
from front.pictures.plots import plot_front, plot_hypervolume, plot_samples
from front.record import (
    NAME,
    BaseRecord,
    BlendRecord,
    FrontRecord,
    Hypervolumes,
    ModelRecord,
    PolicyRecord,
    if_known,
)
from front.report import write_report
from front.tables import with_error
from front.verdict import Gain
from front.view import FrontView
from morl.indicators import hypervolume
from morl.objectives import to_z
from morl.pareto import non_dominated
from morl.types import BASE_POLICY, PolicyId
from run.time_left import MOST_BLENDS, affordable_blends

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from PIL.PngImagePlugin import PngInfo

    from config.base import Settings
    from ddpo.model.stable_diffusion import BaseModel
    from ddpo.rewards.guards import GuardReading
    from ddpo.types import Evaluation
    from morl.types import Objective, Offspring
    from run.directory import RunDir
    from run.records import Costs, CurvePoint, Samples
    from run.session import Session

logger = logging.getLogger(__name__)

PAGE_SHARE = 0.05  # of a run's time, at most, goes to its page before the end


class FrontPublisher:
    """Publishes a run's front; after every generation it updates the trackers and the page."""

    def __init__(self) -> None:
        self._page_written = 0.0  # when, by the monotonic clock
        self._page_seconds = 0.0  # it took

    def generation(self, run: Session) -> None:
        """Show trackers the archive and the policies of the last generation; write the page."""
        run.processes.by_first(run.recorder.show, generation_panel)
        run.processes.by_first(self._refresh_page, run.directory.path)

    def _refresh_page(self, path: Path) -> None:
        """Write the page during the run, unless that would take too much of its time."""
        began = time.monotonic()
        if began - self._page_written < self._page_seconds / PAGE_SHARE:
            return
        _write_page(path, is_running=True)
        self._page_written = time.monotonic()
        self._page_seconds = self._page_written - began

    def front(self, run: Session) -> None:
        """Measure the archive again on the report set, and write what is published."""
        run.recorder.announce("the front on the report set")
        run.processes.by_first(run.catch_up)
        report = run.evaluator.report(run.search.finalists())
        run.processes.by_first(self._write, run, report)
        run.recorder.announce("blends between neighbours")
        self._add_blends(run, report)
        run.processes.by_first(self._finish, run)

    def _add_blends(self, run: Session, report: Mapping[PolicyId, Evaluation]) -> None:
        """Measure blends between the policies farthest apart, and add them to the front."""
        recipes = run.processes.by_first(self._recipes, run)
        if not recipes:
            return
        agents, policies = run.trainer.agents, run.search.policies
        blends = [
            Adapter.blend([(adapter_of(agents, policies[name]), share) for name, share in parts])
            for parts in recipes.values()
        ]
        run.trainer.make_room()
        measured = run.evaluator.blends([policy_of(run.trainer.agents, each) for each in blends])
        evaluations = dict(zip(recipes, measured, strict=True))
        run.processes.by_first(self._write_blends, run, recipes, {**report, **evaluations})

    def _recipes(self, run: Session) -> dict[str, list[tuple[PolicyId, float]]]:
        """Blends that the run can afford, and what each is made of; in the first process."""
        front, settings = Front.load(run.directory.path), run.settings
        fraction, rows = settings.evaluation.blends_fraction, run.recorder.costs.unet_rows
        num = affordable_blends(run.trainer.plan, fraction, rows)
        if num == 0 or len(front.policies) < 2:
            return {}
        recipes = recipes_between(front, spread_points(front, num, MOST_BLENDS))
        return {
            name: [(policy.id, share) for policy, share in parts] for name, parts in recipes.items()
        }

    def _write_blends(
        self,
        run: Session,
        recipes: Mapping[str, Sequence[tuple[PolicyId, float]]],
        evaluations: Mapping[str, Evaluation],
    ) -> None:
        """Publish blends beside the front; in the first process."""
        front = Front.load(run.directory.path)
        known = {policy.id: policy for policy in front.policies}
        parts = {
            name: tuple((known[policy], share) for policy, share in each)
            for name, each in recipes.items()
        }
        num_images = len(recipes) * run.settings.evaluation.report_images
        evaluator = run.evaluator
        measured = {PolicyId(name): evaluations[name] for name in recipes}
        readings = evaluator.guards(evaluator.report_set, measured, evaluations[BASE_POLICY])
        guards = {str(name): _guard_values(reading) for name, reading in readings.items()}
        analysis = summarise(front, parts, evaluations, guards, num_images)
        publish_analysis(front, analysis, evaluations)

    def _finish(self, run: Session) -> None:
        """Write the page, and print the result; in the first process."""
        path, recorder = run.directory.path, run.recorder
        _write_page(path, is_running=False)
        overhead = run.trainer.work.overhead_fraction
        front = Front.load(path)
        last = {"report/hypervolume": front.hypervolume, "cost/overhead_fraction": overhead}
        recorder.log({**last, "cost/seconds_left": 0.0})
        recorder.show(front_panel)
        run.finish()
        for line in farewell(front):
            recorder.say(line)

    def _write(self, run: Session, report: Mapping[PolicyId, Evaluation]) -> None:
        """Publish a front; in the first process."""
        evolution, recorder, evaluator = run.search.evolution, run.recorder, run.evaluator
        guards = run.trainer.guards
        front = front_record(
            evolution.objectives,
            evolution.archive,
            run.search.warmup_archive,
            report,
            recorder.costs,
            evaluator.samples(evaluator.report_set),
            evaluator.guards(evaluator.report_set, report, report[BASE_POLICY]),
            guards.units if guards else {},
            model_record(run.trainer.model, run.settings),
        )
        write_front(run.directory, front, recorder.curve, report)
        run.save_adapters()  # adapters that only the previous front had are removed


def _write_page(path: Path, *, is_running: bool) -> None:
    """Write `report.html`, or warn: everything it shows is on disk already."""
    try:
        write_report(path, is_running=is_running)
    except UserError as error:
        logger.warning("report.html could not be written: %s", error)


def farewell(front: Front) -> list[str]:
    """The last lines of a run: what it found, what to open and what to do next."""
    if len(front.objectives) == 1:
        found, next_steps = _gain_of_one(front), _next_steps(front, front.policies[0].id)
    elif [policy.id for policy in front.policies] == [BASE_POLICY]:
        found, next_steps = "nothing beats the base model yet: this run was too short to learn", []
    else:
        trained = [member for member in front.members if member.id != BASE_POLICY]
        balanced = max(trained, key=lambda member: front.gain(member).min())
        found, next_steps = _members_found(front), _next_steps(front, balanced.id)
    return [f"done        {found}", f"look        {near(front.path / 'report.html')}", *next_steps]


def _members_found(front: Front) -> str:
    """How many members a front has, and how many of them are better than the base model."""
    found = counted(len(front.policies), "policy", "policies")
    if front.blends:
        found += f" and {counted(len(front.blends), 'blend', 'blends')} of neighbours"
    record = FrontRecord.read(front.path)
    entries: list[PolicyRecord | BlendRecord] = [*record.policies, *(record.blends or ())]
    num_better = sum(Gain.published(entry, record.base).is_everywhere for entry in entries)
    better = counted(num_better, "member", "members")
    return f"{found} on the front; {better} clearly better than the base model in every objective"


def _gain_of_one(front: Front) -> str:
    """What the policy of a run with one objective gains."""
    (policy,), (objective,) = front.policies, front.objectives
    now = with_error(policy.report_returns[0], policy.report_std_error[0])
    then = with_error(front.base.report_returns[0], front.base.report_std_error[0])
    return f"{policy.id}: {objective.name} {now}, the base model {then}"


def _next_steps(front: Front, member: str) -> list[str]:
    """Commands that draw with one member, export it and open the live app."""
    choice = (near(front.path), "--policy", member)
    prompt = front.sample_prompts[0] if front.sample_prompts else "cat"
    return [
        f"draw        {typed_command('mo_front.py', 'generate', *choice, '--prompt', prompt)}",
        f"take        {typed_command('mo_front.py', 'export', *choice, '--out', 'my_adapter')}",
        f"play        {typed_command('mo_front.py', 'serve', near(front.path))}",
    ]


def front_record(
    objectives: tuple[Objective, ...],
    archive: Sequence[Offspring],
    warmup: Sequence[PolicyId],
    report: Mapping[PolicyId, Evaluation],
    costs: Costs,
    samples: Samples,
    readings: Mapping[PolicyId, GuardReading],
    guard_units: Mapping[str, str],
    model: ModelRecord | None = None,
) -> FrontRecord:
    """The front that a run publishes.

    Members that another member dominates on the report set are listed apart, not published.

    Args:
        objectives: with their reference and ideal points.
        archive: non-dominated on the selection set.
        warmup: ids of the archive as it stood after the warm-up stage.
        report: id -> evaluation on the report set, for the archive, `warmup` and the base model.
        costs: images and UNet rows.
        samples: prompts and seeds of the pictures that `report` kept.
        readings: id -> its guards' values on the report set; empty without guards.
        guard_units: guard -> its unit.
        model: how the base model drew.
    """
    # Members that another one dominates on the report set are set apart.
    base = report[BASE_POLICY]
    z = {name: to_z(each.returns.numpy(), objectives) for name, each in report.items()}
    members = [member.policy for member in archive]
    is_kept = non_dominated(np.stack([z[name] for name in members]))
    dominated = tuple(name for name, kept in zip(members, is_kept, strict=True) if not kept)
    if dominated:
        logger.info(
            "%d of %d archive members are dominated on the report set", len(dominated), len(members)
        )
    # The record.
    guards = {name: _guard_values(reading) for name, reading in readings.items()}
    limits = dict(zip(guard_units, _limits(readings), strict=False))
    return FrontRecord(
        objectives=objectives,
        policies=tuple(
            _policy_record(member, report[member.policy], base, guards.get(member.policy, {}))
            for member, kept in zip(archive, is_kept, strict=True)
            if kept
        ),
        dominated_on_report=dominated,
        base=BaseRecord(
            report_returns=base.returns.numpy(),
            report_std_error=base.std_error.numpy(),
            report_std_error_by_prompt=if_known(base.std_error_by_prompt),
            guards=guards.get(BASE_POLICY, {}),
        ),
        hypervolume=Hypervolumes(
            selection=hypervolume(np.stack([to_z(each.returns, objectives) for each in archive])),
            report=hypervolume(np.stack([z[name] for name in members])),
            report_warmup=hypervolume(np.stack([z[name] for name in warmup])),
            report_base=hypervolume(z[BASE_POLICY][None]),
        ),
        costs=costs,
        guards=tuple(
            Guard(name=name, unit=unit, max_drop=limits.get(name))
            for name, unit in guard_units.items()
        ),
        samples=samples,
        model=model,
    )


def model_record(model: BaseModel, run_settings: Settings) -> ModelRecord | None:
    """How a base model drew; None for one that is no pipeline of diffusers."""
    if not isinstance(model, FrozenDiffusion):
        return None
    settings, scheduler = run_settings.pretrained, model.scheduler(run_settings.sample.sampler)
    names = ("prediction_type", "timestep_spacing", "rescale_betas_zero_snr")
    height, width = model.image_size
    config = source_of(configuration_source(settings)).name
    is_file = config != source_of(settings.model).name
    try:
        has_plain_lora = not settings.lora or read_lora(settings).is_plain
    except UserError:  # it was there at the start
        has_plain_lora = False
    return ModelRecord(
        pipeline=type(model.pipe).__name__,
        height=height,
        width=width,
        schedule={name: getattr(scheduler.config, name) for name in names},
        sampler=name_of(scheduler),
        config=shared_name(config) if is_file else "",
        has_plain_lora=has_plain_lora,
        has_plain_unet=not is_file or model.pipe.unet.config.time_cond_proj_dim is None,
    )


def _limits(readings: Mapping[PolicyId, GuardReading]) -> tuple[float, ...]:
    """How much of each guard may be lost, or nothing."""
    return readings[BASE_POLICY].max_drops if readings else ()


def _guard_values(reading: GuardReading) -> dict[str, GuardValue]:
    return {name: GuardValue(**values) for name, values in reading.to_json().items()}


def _policy_record(
    member: Offspring, report: Evaluation, base: Evaluation, guards: Mapping[str, GuardValue]
) -> PolicyRecord:
    gain = report.gain_over(base)
    return PolicyRecord(
        id=member.policy,
        parent=member.parent,
        generation=member.generation,
        weights=member.weights,
        returns=member.returns,
        std_error=member.std_error,
        report_returns=report.returns.numpy(),
        report_std_error=report.std_error.numpy(),
        report_std_error_by_prompt=if_known(report.std_error_by_prompt),
        gain_over_base=gain.mean.numpy(),
        gain_std_error=gain.std_error.numpy(),
        gain_std_error_by_prompt=if_known(gain.std_error_by_prompt),
        adapter=f"adapters/{member.policy}",
        guards=guards,
    )


def write_front(
    directory: RunDir,
    front: FrontRecord,
    curve: Sequence[CurvePoint],
    report: Mapping[PolicyId, Evaluation],
) -> None:
    """Write `front.json`, the plots, `samples.png` and `samples/report/`.

    What belongs to a front published before, its analysis and other pictures, is removed.

    Args:
        directory: gets the files.
        front: from `front_record`.
        curve: a point for the base model and for each generation.
        report: id -> evaluation with images.
    """
    run = directory.path
    directory.write_json(NAME, front.to_json())
    pictures = (run / "samples" / "report").glob("*.webp")
    stale = [picture for picture in pictures if picture.stem not in report]
    for path in (run / ANALYSIS, run / DENSE_PLOT, *stale):
        path.unlink(missing_ok=True)
    view = FrontView.of_front(front)
    plot_front(run / "front.png", view)
    plot_hypervolume(run / "hypervolume.png", curve, len(front.objectives))
    rows = [("base model", report[BASE_POLICY].images)]
    for policy in view.policies:
        label = "\n".join([policy.id, *(f"{value:.4g}" for value in policy.returns.tolist())])
        rows.append((label, report[policy.id].images))
    plot_samples(run / "samples.png", front.samples.prompts, rows, text=_text(run, report))
    directory.write_samples("report", report)


def _text(run: Path, report: Mapping[PolicyId, Evaluation]) -> PngInfo | None:
    """The settings that the first picture of the front was drawn with."""
    front = Front.load(run)
    member = front.policies[0]
    images = report[member.id].images
    if not len(images):
        return None
    keys = front.sample_prompts[0], front.sample_seeds[0]
    return png_text(describe(to_picture(images[0]), front, member, *keys, sampler_of(front)))
