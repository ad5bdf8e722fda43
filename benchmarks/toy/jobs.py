"""The runs of the comparison, in a module that workers can import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.common import say
from benchmarks.side_by_side import completed
from config.settings.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.evidence import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run."""

    pair: str
    arm: str
    seed: int
    learning_rate: float

    def path(self, folder: Path) -> Path:
        """The path of its record below a folder."""
        return folder / self.pair / self.arm / f"{self.seed}.json"


def do(job: Job) -> Record:
    """Do one run in this process."""
    from benchmarks.toy.run import play  # noqa: PLC0415 - slow to import, for workers only

    return play(job.pair, job.arm, job.seed, job.learning_rate)


def do_all(jobs: Sequence[Job], workers: int, keep: Callable[[Job, Record | None], object]) -> None:
    """Do runs, `workers` at a time, with one thread each.

    Args:
        jobs: the runs.
        workers: number of processes.
        keep: called with each run's record when it is done; with None if the run ended early.
    """
    say(f"{len(jobs)} runs to do\n")
    for number, (job, outcome) in enumerate(completed(do, jobs, workers), 1):
        try:
            record = outcome.result()
        except UserError as error:
            keep(job, None)
            say(f"{number}/{len(jobs)} {job} ended early: {error}")
            continue
        keep(job, record)
        say(
            f"{number}/{len(jobs)} {job.pair} {job.arm} {job.learning_rate:g} seed {job.seed}: "
            f"{record.hypervolumes()[-1]:.3f}, {record.points[-1].seconds:.1f} s"
        )
