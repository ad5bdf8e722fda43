"""One run of the study: the program, plus a measurement of every archive on the report set."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING

from benchmarks.evidence import Point, Record, row_equivalents
from mo_train import train
from run.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from config.base import Settings
    from ddpo.model.stable_diffusion import BaseModel

    Judge = Callable[[torch.Tensor, Sequence[str]], float]

_NOTES = "report_curve.json"


class ReportCurve:
    """Measures a run's archive on the report set after every generation.

    The run is not charged for it: its images, UNet rows and time are not counted, and no decision
    depends on it. If a run was interrupted after saving a generation but before measuring it, this
    happens when the run resumes. Nothing is published: the study needs only the record.

    Args:
        since: start of the run by `time.perf_counter`.
        judge: (pictures (n, 3, H, W) uint8, prompts) -> share in which it finds the subject.
    """

    def __init__(self, since: float, judge: Judge | None = None) -> None:
        self.returns: dict[str, list[float]] = {}
        self.found: dict[str, float] = {}
        self.points: list[Point] = []
        self._since = since
        self._judge = judge

    def opened(self, run: Session) -> None:
        """Measure the base model, or load the measurements of a resumed run."""
        path, done = run.directory.path / _NOTES, run.search.evolution.num_generations_done
        if not run.directory.is_new and path.is_file():
            noted = json.loads(path.read_text(encoding="utf-8"))
            self.returns, self.found = noted["returns"], noted["found"]
            self.points = [Point.from_json(point) for point in noted["points"][: done + 1]]
        if len(self.points) <= done:
            self._note(run)

    def generation(self, run: Session) -> None:
        """Measure the archive after a generation."""
        self._note(run)

    def front(self, run: Session) -> None:
        """Publish nothing."""

    def record(self, run: Session, pair: str, arm: str) -> Record:
        """The record of a finished run."""
        return Record(
            pair=pair,
            arm=arm,
            seed=run.settings.seed,
            learning_rate=run.settings.train.learning_rate,
            objectives=run.search.evolution.objectives,
            returns=self.returns,
            points=tuple(self.points),
            found=self.found,
        )

    def _note(self, run: Session) -> None:
        seconds = time.perf_counter() - self._since
        archive, costs = run.search.archive(), run.recorder.costs
        new = {name: policy for name, policy in archive.items() if name not in self.returns}
        if new:
            on = run.evaluator.report_set
            keep = len(on.prompts) if self._judge else 0
            evaluations = run.trainer.evaluate(list(new.values()), on, keep)
            for name, evaluation in zip(new, evaluations, strict=True):
                returns = evaluation.returns.tolist()
                self.returns[name] = [float(f"{value:.6g}") for value in returns]
                if self._judge:
                    self.found[name] = self._judge(evaluation.images, on.prompts)
        run.trainer.take_unet_rows()
        plan = run.trainer.plan
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
        noted = {"points": points, "returns": self.returns, "found": self.found}
        run.directory.write_json(_NOTES, noted, for_people=False)
        self._since = time.perf_counter()


def measured(
    settings: Settings,
    pair: str,
    arm: str,
    model: BaseModel | None = None,
    judge: Judge | None = None,
) -> Record:
    """Do a run, or the rest of it, and return its record.

    Args:
        settings: of the run.
        pair: its name in `arms.PAIRS`.
        arm: its name in `arms.ARMS`.
        model: the base model; by default the one in the settings.
        judge: see `ReportCurve`.
    """
    curve = ReportCurve(time.perf_counter(), judge)
    with Session.open(settings, model=model) as run:
        curve.opened(run)
        train(run, curve)
    return curve.record(run, pair, arm)
