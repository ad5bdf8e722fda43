"""The methods compared on the toy: how much hypervolume, from how few images.

    python -m benchmarks.toy                    # the tables of the recorded runs
    python -m benchmarks.toy --folder FOLDER    # all runs again, with records below another folder
    python -m benchmarks.toy --tune             # the missing runs of the sweep of learning rates

An arm is one variant of the method. Runs with a record are not repeated. A run takes two seconds on
one core. Each arm uses the best learning rate of its sweep (`benchmarks/toy/sweep.json`), which has
other seeds.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.toy.arms import HERE, PAIRS, RUNNABLE, SEEDS, TUNING_SEEDS
from benchmarks.toy.jobs import Job, do_all
from benchmarks.toy.sweep import Sweep
from config.settings.files import path

if TYPE_CHECKING:
    from benchmarks.evidence import Record


def tune(sweep: Sweep, workers: int) -> None:
    """Do the missing runs of the sweep, which grows while an arm's best rate is at an end."""

    def missing() -> list[Job]:
        jobs = [
            Job(pair=pair, arm=arm, seed=seed, learning_rate=rate)
            for seed in TUNING_SEEDS
            for pair in PAIRS
            for arm in RUNNABLE
            for rate in sweep.rates(pair, arm)
        ]
        return [j for j in jobs if not sweep.has(j.pair, j.arm, j.learning_rate, j.seed)]

    def keep(job: Job, record: Record | None) -> None:
        """Keep the hypervolume of a run; 0 if it diverged and ended early."""
        volume = record.hypervolumes()[-1] if record else 0.0
        sweep.keep(job.pair, job.arm, job.learning_rate, job.seed, volume)

    while jobs := missing():
        do_all(jobs, workers, keep)


def compare(sweep: Sweep, folder: Path, workers: int) -> None:
    """Do the runs of the comparison that have no record; exits if one of them ended early."""
    jobs = [
        Job(pair=pair, arm=arm, seed=seed, learning_rate=sweep.best(pair, arm))
        for seed in SEEDS
        for pair in PAIRS
        for arm in RUNNABLE
    ]
    broken = []

    def keep(job: Job, record: Record | None) -> None:
        if record:
            record.write(job.path(folder))
        else:
            broken.append(job)

    do_all([job for job in jobs if not job.path(folder).exists()], workers, keep)
    if broken:
        sys.exit(f"{len(broken)} runs ended early: {broken}")


def main() -> None:
    """Do the missing runs and print the tables."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments.add_argument("--folder", type=path, default=HERE / "results")
    arguments.add_argument("--tune", action="store_true")
    chosen = arguments.parse_args()
    os.environ.setdefault(
        "TRANSFORMERS_VERBOSITY", "error"
    )  # of the workers: else it warns about torchvision
    sweep = Sweep(HERE / "sweep.json")
    if chosen.tune:
        tune(sweep, chosen.workers)
    compare(sweep, chosen.folder, chosen.workers)
    from benchmarks.toy.tables import print_all  # noqa: PLC0415 - when all runs are done

    print_all(sweep, chosen.folder)


if __name__ == "__main__":
    main()
