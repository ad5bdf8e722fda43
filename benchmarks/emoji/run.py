"""One run of the study: the program, with every archive measured on the report set too."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING

from benchmarks.evidence import Point, Record, row_equivalents
from ddpo.cost.footprint import plan_of
from mo_train import train
from run.session import Session

if TYPE_CHECKING:
    from config.base import Settings
    from ddpo.model.stable_diffusion import BaseModel

_NOTES = "report_curve.json"


class ReportCurve:
    """Notes after every generation what a run's archive is worth on the report set.

    That costs the run nothing: neither images, UNet rows nor time are counted, and no decision
    depends on it. A generation that was saved but not noted before a run broke off is noted when
    the run goes on. Nothing is published: the record is all that the study needs.

    Args:
        since: when the run began to open, by `time.perf_counter`.
    """

    def __init__(self, since: float) -> None:
        self.returns: dict[str, list[float]] = {}
        self.points: list[Point] = []
        self._since = since

    def opened(self, run: Session) -> None:
        """Note the base model, or go on from the notes of a run that goes on."""
        path, done = run.directory.path / _NOTES, run.search.evolution.num_generations_done
        if not run.directory.is_new and path.is_file():
            noted = json.loads(path.read_text(encoding="utf-8"))
            self.returns = noted["returns"]
            self.points = [Point.from_json(point) for point in noted["points"][: done + 1]]
        if len(self.points) <= done:
            self._note(run)

    def generation(self, run: Session) -> None:
        """Note a generation."""
        self._note(run)

    def front(self, run: Session) -> None:
        """Nothing."""

    def record(self, run: Session, pair: str, arm: str) -> Record:
        """The record of a run that is done."""
        return Record(
            pair=pair,
            arm=arm,
            seed=run.settings.seed,
            learning_rate=run.settings.train.learning_rate,
            objectives=run.search.evolution.objectives,
            returns=self.returns,
            points=tuple(self.points),
        )

    def _note(self, run: Session) -> None:
        seconds = time.perf_counter() - self._since
        archive, costs = run.search.archive(), run.recorder.costs
        new = {name: policy for name, policy in archive.items() if name not in self.returns}
        if new:
            evaluations = run.trainer.evaluate(list(new.values()), run.evaluator.report_set)
            for name, evaluation in zip(new, evaluations, strict=True):
                returns = evaluation.returns.tolist()
                self.returns[name] = [float(f"{value:.6g}") for value in returns]
        run.trainer.take_unet_rows()
        plan = plan_of(run.settings, len(run.trainer.prompts.train))
        gradient_rows = plan.train_rows * costs.train // plan.train_images
        before = self.points[-1].seconds if self.points else 0.0
        self.points.append(
            Point(
                images=costs.train + costs.selection,
                rows=row_equivalents(costs.unet_rows, gradient_rows),
                seconds=round(before + seconds, 1),
                archive=tuple(archive),
            )
        )
        points = [dataclasses.asdict(point) for point in self.points]
        noted = {"points": points, "returns": self.returns}
        run.directory.write_json(_NOTES, noted, for_people=False)
        self._since = time.perf_counter()


def measured(settings: Settings, pair: str, arm: str, model: BaseModel | None = None) -> Record:
    """Do a run, or what is left of it, and return its record.

    Args:
        settings: of the run.
        pair: its name in `arms.PAIRS`.
        arm: its name in `arms.ARMS`.
        model: the base model; by default that of the settings.
    """
    curve = ReportCurve(time.perf_counter())
    with Session.open(settings, model=model) as run:
        curve.opened(run)
        train(run, curve)
    return curve.record(run, pair, arm)
