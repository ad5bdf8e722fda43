"""The study on the embedded model: what each part of the method is worth.

    python -m benchmarks.emoji                 # do all runs that have no record, then the tables
    python -m benchmarks.emoji --arms nft      # of some arms only
    python -m benchmarks.emoji --tables        # tables, plots and summary.json from the records

The sweep of learning rates comes first, on seeds of its own; every arm then uses the rate that was
best for it. Runs go side by side, one process and one thread each. A run that was interrupted is
continued; records are JSON below `benchmarks/emoji/`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import CACHE, say
from benchmarks.emoji.arms import (
    ARMS,
    MAIN_SEEDS,
    PAIRS,
    SEEDS,
    TUNING_SEEDS,
    words,
)
from benchmarks.evidence import Record, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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


def tuning_jobs(arms: Sequence[str], pairs: Sequence[str]) -> Iterator[Job]:
    """The sweeps that these arms need on these pairs."""
    for seed in TUNING_SEEDS:
        for pair in pairs:
            needed = (ARMS[arm].tuned_as or arm for arm in arms if pair in ARMS[arm].pairs)
            for arm in dict.fromkeys(needed):
                for rate in ARMS[arm].rates:
                    yield Job(pair=pair, arm=arm, seed=seed, learning_rate=rate, is_tuning=True)


def study_jobs(arms: Sequence[str], pairs: Sequence[str]) -> Iterator[Job]:
    """The comparison, seed by seed: wherever it is stopped, what there is can be compared."""
    chosen = [(pair, arm) for pair in pairs for arm in arms if pair in ARMS[arm].pairs]
    rates = {place: tuned_rate(*place) for place in chosen}
    for seed in MAIN_SEEDS:
        for (pair, arm), rate in rates.items():
            if seed in SEEDS or ARMS[arm].is_main:
                yield Job(pair=pair, arm=arm, seed=seed, learning_rate=rate)


def tuned_rate(pair: str, arm: str) -> float:
    """The learning rate with which an arm was best in its sweep, on average over the images."""
    found = sweep(HERE / "tuning" / pair / (ARMS[arm].tuned_as or arm))
    return max(found, key=lambda rate: found[rate])


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
    with ProcessPoolExecutor(max_workers=workers, mp_context=spawn) as pool:
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


def main() -> None:
    """Do what is missing and print the tables."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    arguments.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    arguments.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments.add_argument("--tables", action="store_true", help="do no runs")
    chosen = arguments.parse_args()
    if not chosen.tables:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which start anew
        failed = do_all(list(tuning_jobs(chosen.arms, chosen.pairs)), chosen.workers)
        if not failed:
            failed = do_all(list(study_jobs(chosen.arms, chosen.pairs)), chosen.workers)
        if failed:
            sys.exit(f"{failed} runs failed; start again to repeat them")
    from benchmarks.emoji.tables import write_all  # noqa: PLC0415 - only when all is there

    write_all(HERE)


if __name__ == "__main__":
    main()
