"""The runs of the study, in a module that workers can import."""

from __future__ import annotations

import shutil
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import CACHE, say
from benchmarks.emoji.arms import words
from benchmarks.side_by_side import completed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.evidence import Record

HERE = Path(__file__).parent
_UNFINISHED = CACHE / "emoji-study"  # run directories, from which interrupted runs resume


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
        """The path of its record."""
        kind = "tuning" if self.is_tuning else "results"
        rate = f"{self.learning_rate:g}" if self.is_tuning else ""
        return HERE / kind / self.pair / self.arm / rate / f"{self.seed}.json"


def do(job: Job) -> Record:
    """Do one run in this process, or the rest of it, and write its record."""
    from benchmarks.emoji.run import measured  # noqa: PLC0415 - imports torch
    from run.command_line import read_settings  # noqa: PLC0415
    from tools.emoji_judge import subjects_found  # noqa: PLC0415

    kind = "tuning-" if job.is_tuning else ""
    name = f"{kind}{job.pair}-{job.arm}-{job.learning_rate:g}-{job.seed}"
    where = {
        "logdir": str(_UNFINISHED),
        "run_name": name,
        "resume_from": "auto",
        "num_threads": "1",
    }
    if job.is_tuning:  # not on the prompts that compare arms
        where["prompts.report"] = "emoji_animals"
    settings = read_settings(words(job.pair, job.arm, job.seed, job.learning_rate, where))
    record = measured(settings, job.pair, job.arm, judge=subjects_found)
    record.write(job.path)
    shutil.rmtree(_UNFINISHED / name)
    return record


def do_all(jobs: Sequence[Job], workers: int) -> int:
    """Do the runs that have no record, `workers` at a time; returns how many failed."""
    missing = [job for job in jobs if not job.path.exists()]
    say(f"{len(missing)} of {len(jobs)} runs to do")
    failed = 0
    for number, (job, outcome) in enumerate(completed(do, missing, workers), 1):
        if error := outcome.exception():
            failed += 1
            say(f"{number}/{len(missing)} {job} failed")
            traceback.print_exception(error)
            continue
        record = outcome.result()
        say(
            f"{number}/{len(missing)} {job.path.relative_to(HERE)}: hypervolume "
            f"{record.hypervolumes()[-1]:.4f}, {record.points[-1].seconds:.0f} s"
        )
    return failed
