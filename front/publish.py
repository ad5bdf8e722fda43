"""What is published of a run: the archive re-evaluated on the report set, its plots and pictures.

The archive kept the luckiest of many noisy readings, so its own numbers flatter it. The report set
has other prompts and other seeds, and took no part in any decision.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from config.settings.errors import UserError
from front.analyse import ANALYSIS, DENSE_PLOT
from front.media import generation_media, published_media
from front.plots import plot_front, plot_hypervolume, plot_samples
from front.report import write_report
from morl.indicators import hypervolume
from morl.objectives import to_z
from morl.pareto import non_dominated
from morl.types import BASE_POLICY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ddpo.rewards.guards import GuardReading
    from ddpo.types import Evaluation
    from morl.types import Objective, Offspring, PolicyId
    from run.directory import RunDir
    from run.records import Costs, CurvePoint, Samples
    from run.session import Session

logger = logging.getLogger(__name__)

FORMAT = 1


class FrontPublisher:
    """Publishes a run's front, and shows trackers every generation on the way."""

    def generation(self, run: Session) -> None:
        """Show trackers the archive and the policies of the last generation."""
        run.processes.once(run.recorder.show, generation_media)

    def front(self, run: Session) -> None:
        """Measure the archive again on the report set, and write what is published."""
        run.processes.once(run.catch_up)
        report = run.evaluator.report(run.search.finalists())
        run.processes.once(self._write, run, report)

    def _write(self, run: Session, report: Mapping[PolicyId, Evaluation]) -> None:
        evolution, recorder = run.search.evolution, run.recorder
        front = front_record(
            evolution.objectives,
            evolution.archive,
            run.search.warmup_archive,
            report,
            recorder.costs,
        )
        readings = run.evaluator.guards(run.evaluator.report_set, report, report[BASE_POLICY])
        if run.trainer.guards:
            front = with_guards(front, readings, run.trainer.guards.units)
        samples = run.evaluator.samples(run.evaluator.report_set)
        publish(run.directory, front, evolution.offspring, recorder.curve, samples, report)
        run.save_adapters()  # those that only the front before this one had are let go
        volumes = front["hypervolume"]
        overhead = run.trainer.work.overhead_fraction
        recorder.log({"report/hypervolume": volumes["report"], "cost/overhead_fraction": overhead})
        recorder.show(published_media)
        run.finish()
        recorder.say(
            f"front of {len(front['policies'])} policies in {run.directory.path}; hypervolume on "
            f"the report set {volumes['report']:.4f} (base model {volumes['report_base']:.4f}, "
            f"after warm-up {volumes['report_warmup']:.4f})"
        )
        recorder.say(
            f"{overhead:.1%} of the time went to search, files, logs and plots, all else to "
            "drawing, scoring and updates"
        )


def front_record(
    objectives: Sequence[Objective],
    archive: Sequence[Offspring],
    warmup: Sequence[PolicyId],
    report: Mapping[PolicyId, Evaluation],
    costs: Costs,
) -> dict[str, Any]:
    """The content of `front.json`.

    Members that another member dominates on the report set are listed apart, not published.

    Args:
        objectives: with their reference and ideal points.
        archive: non-dominated on the selection set.
        warmup: ids of the archive as it stood after the warm-up stage.
        report: id -> evaluation on the report set, for the archive, `warmup` and the base model.
        costs: images and UNet rows.
    """
    base = report[BASE_POLICY]
    means = {name: evaluation.returns.numpy() for name, evaluation in report.items()}
    members = [member.policy for member in archive]
    is_kept = non_dominated(np.stack([to_z(means[name], objectives) for name in members]))
    dominated = [name for name, kept in zip(members, is_kept, strict=True) if not kept]
    if dominated:
        logger.info(
            "%d of %d archive members are dominated on the report set", len(dominated), len(members)
        )

    def report_hypervolume(names: Sequence[PolicyId]) -> float:
        return hypervolume(np.stack([to_z(means[name], objectives) for name in names]))

    return {
        "format": FORMAT,
        "objectives": [objective.to_json() for objective in objectives],
        "policies": [
            _policy_record(member, report[member.policy], base)
            for member, kept in zip(archive, is_kept, strict=True)
            if kept
        ],
        "dominated_on_report": dominated,
        "base": {
            "report_returns": base.returns.tolist(),
            "report_std_error": base.std_error.tolist(),
        },
        "hypervolume": {
            "selection": hypervolume(
                np.stack([to_z(member.returns, objectives) for member in archive])
            ),
            "report": report_hypervolume(members),
            "report_warmup": report_hypervolume(list(warmup)),
            "report_base": report_hypervolume([BASE_POLICY]),
        },
        "images": {"train": costs.train, "selection": costs.selection, "report": costs.report},
        "unet_rows": costs.unet_rows,
    }


def with_guards(
    front: Mapping[str, Any], readings: Mapping[PolicyId, GuardReading], units: Mapping[str, str]
) -> dict[str, Any]:
    """The content of `front.json` with what the guards say of each policy and the base model.

    Args:
        front: from `front_record`.
        readings: on the report set, of every policy in it and of the base model.
        units: of the guards.
    """
    limits = dict(zip(units, readings[BASE_POLICY].max_losses, strict=False))
    return {
        **front,
        "guards": [
            {"name": name, "unit": unit, "max_loss": limits.get(name)}
            for name, unit in units.items()
        ],
        "policies": [
            {**policy, "guards": readings[policy["id"]].to_json()} for policy in front["policies"]
        ],
        "base": {**front["base"], "guards": readings[BASE_POLICY].to_json()},
    }


def _policy_record(member: Offspring, report: Evaluation, base: Evaluation) -> dict[str, Any]:
    gain, gain_std_error = report.gain_over(base)
    return {
        "id": member.policy,
        "parent": member.parent,
        "generation": member.generation,
        "weights": member.weights.tolist(),
        "returns": member.returns.tolist(),
        "std_error": member.std_error.tolist(),
        "report_returns": report.returns.tolist(),
        "report_std_error": report.std_error.tolist(),
        "gain_over_base": gain.tolist(),
        "gain_std_error": gain_std_error.tolist(),
        "adapter": f"adapters/{member.policy}",
    }


def publish(
    run_dir: RunDir,
    front: Mapping[str, Any],
    offspring: Sequence[Offspring],
    curve: Sequence[CurvePoint],
    samples: Samples,
    report: Mapping[PolicyId, Evaluation],
) -> None:
    """Write `front.json`, `report.html`, the plots, `samples.png` and `samples/report/`.

    What belongs to a front published before, its analysis and other pictures, is removed.

    Args:
        run_dir: where to.
        front: from `front_record`.
        offspring: of all generations, for the faint dots.
        curve: (training images, hypervolume on the selection set) after each generation.
        samples: prompts and seeds of the pictures that `report` kept.
        report: id -> evaluation with images.
    """
    run_dir.write_json("front.json", {**front, "samples": samples.to_json()})
    pictures = (run_dir.path / "samples" / "report").glob("*.webp")
    stale = [picture for picture in pictures if picture.stem not in report]
    for path in (run_dir.path / ANALYSIS, run_dir.path / DENSE_PLOT, *stale):
        path.unlink(missing_ok=True)
    plot_front(run_dir.path / "front.png", front, offspring)
    plot_hypervolume(run_dir.path / "hypervolume.png", [x for x, _ in curve], [y for _, y in curve])
    members = sorted(front["policies"], key=lambda policy: policy["report_returns"][0])
    rows = [("base model", report[BASE_POLICY].images)]
    for member in members:
        label = "\n".join([member["id"], *(f"{value:.4g}" for value in member["report_returns"])])
        rows.append((label, report[member["id"]].images))
    plot_samples(run_dir.path / "samples.png", samples.prompts, rows)
    run_dir.write_samples("report", report)
    try:
        write_report(run_dir.path)
    except UserError as error:  # everything it shows is on disk already
        logger.warning("report.html could not be written: %s", error)
