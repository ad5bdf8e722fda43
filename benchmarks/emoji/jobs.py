"""The runs of the study side by side, in a module that workers can import."""

from __future__ import annotations

import multiprocessing
import shutil
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import CACHE, pin_to_one_thread, say
from benchmarks.emoji.arms import words
from benchmarks.evidence import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        pair: its name in `PAIRS`.
        arm: its name in `ARMS`.
        seed: of the run.
        learning_rate: of the run.
        is_tuning: whether it belongs to the sweep.
    """

    pair: str
    arm: str
    seed: int
    learning_rate: float
    is_tuning: bool = False

    @property
    def path(self) -> Path:
        """Of its record."""
        kind = "tuning" if self.is_tuning else "results"
        rate = f"{self.learning_rate:g}" if self.is_tuning else ""
        return HERE / kind / self.pair / self.arm / rate / f"{self.seed}.json"


def do(job: Job) -> Job:
    """Do one run in this process, unless its record is there; write the record."""
    from benchmarks.emoji.run import measured  # noqa: PLC0415 - imports torch
    from mo_train import read_settings  # noqa: PLC0415

    name = f"{'tuning-' if job.is_tuning else ''}{job.pair}-{job.arm}-{job.learning_rate:g}"
    where = {"logdir": str(CACHE / "emoji-study"), "run_name": f"{name}-{job.seed}"}
    place = [f"--config.{key}={value}" for key, value in where.items()]
    settings = read_settings(
        [
            *words(job.pair, job.arm, job.seed, job.learning_rate),
            *place,
            "--config.resume_from=auto",
            "--config.num_threads=1",
        ]
    )
    measured(settings, job.pair, job.arm).write(job.path)
    shutil.rmtree(Path(where["logdir"]) / where["run_name"])
    return job


def do_all(jobs: Sequence[Job], workers: int) -> int:
    """Do the runs that have no record, `workers` at a time; returns how many failed."""
    missing = [job for job in jobs if not job.path.exists()]
    say(f"{len(missing)} of {len(jobs)} runs to do")
    failed = 0
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=pin_to_one_thread) as pool:
        futures = {pool.submit(do, job): job for job in missing}
        for number, future in enumerate(as_completed(futures), 1):
            job = futures[future]
            if error := future.exception():
                failed += 1
                say(f"{number}/{len(missing)} {job} failed")
                traceback.print_exception(error)
            else:
                record = Record.read(job.path)
                volume, seconds = record.hypervolumes()[-1], record.points[-1].seconds
                say(
                    f"{number}/{len(missing)} {job.path.relative_to(HERE)}: hypervolume "
                    f"{volume:.4f}, {seconds:.0f} s"
                )
    return failed
