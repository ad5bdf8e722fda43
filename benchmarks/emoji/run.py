"""One run of the study: `mo_loop.Run`, with every archive measured on the report set too."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING

from benchmarks.evidence import Point, Record, row_equivalents
from ddpo.cost.plan import Plan
from mo_loop import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.settings.schema import Settings
    from ddpo.model.stable_diffusion import BaseModel
    from morl.types import Generation
    from run.checkpoint import Checkpoint

_NOTES = "report_curve.json"


class MeasuredRun(Run):
    """A run that notes after every generation what its archive is worth on the report set.

    That costs the run nothing: neither images, UNet rows nor time are counted, and no decision
    depends on it. The notes are written before the generation's checkpoint, so that a resumed run
    goes on from them.
    """

    def __init__(self, settings: Settings, model: BaseModel | None = None) -> None:
        self.returns: dict[str, list[float]] = {}
        self.points: list[Point] = []
        self._since = time.perf_counter()
        super().__init__(settings, model=model)

    def _start(self) -> None:
        super()._start()
        self._measure()

    def _restore(self, checkpoint: Checkpoint, changes: Sequence[str]) -> None:
        super()._restore(checkpoint, changes)
        noted = json.loads((self.run_dir.path / _NOTES).read_text(encoding="utf-8"))
        done = self.evolution.num_generations_done
        self.returns = noted["returns"]
        self.points = [Point.from_json(point) for point in noted["points"][: done + 1]]

    def _commit(self, generation: Generation) -> None:
        self._measure()
        super()._commit(generation)

    def _publish(self) -> None:
        """Nothing: the record is all that the study needs."""

    def _measure(self) -> None:
        seconds = time.perf_counter() - self._since
        archive = [member.policy for member in self.evolution.archive]
        new = [name for name in archive if name not in self.returns]
        if new:
            policies = [self.policies[name] for name in new]
            evaluations = self.trainer.evaluate(policies, self.report_set)
            for name, evaluation in zip(new, evaluations, strict=True):
                returns = evaluation.returns.tolist()
                self.returns[name] = [float(f"{value:.6g}") for value in returns]
        self.trainer.take_unet_rows()
        plan = Plan.of(self.settings, len(self.trainer.prompts.train))
        gradient_rows = plan.train_rows * self.costs.train // plan.train_images
        before = self.points[-1].seconds if self.points else 0.0
        self.points.append(
            Point(
                images=self.costs.train + self.costs.selection,
                rows=row_equivalents(self.costs.unet_rows, gradient_rows),
                seconds=round(before + seconds, 1),
                archive=tuple(archive),
            )
        )
        points = [dataclasses.asdict(point) for point in self.points]
        noted = {"points": points, "returns": self.returns}
        self.run_dir.write_json(_NOTES, noted, for_people=False)
        self._since = time.perf_counter()


def measured(settings: Settings, pair: str, arm: str, model: BaseModel | None = None) -> Record:
    """Do a run, or what is left of it, and return its record.

    Args:
        settings: of the run.
        pair: its name in `arms.PAIRS`.
        arm: its name in `arms.ARMS`.
        model: the base model; by default that of the settings.
    """
    run = MeasuredRun(settings, model)
    run.train()
    return Record(
        pair=pair,
        arm=arm,
        seed=settings.seed,
        learning_rate=settings.train.learning_rate,
        objectives=run.evolution.objectives,
        returns=run.returns,
        points=tuple(run.points),
    )
