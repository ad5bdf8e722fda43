"""The study on the embedded model: how much each part of the method contributes.

    python -m benchmarks.emoji                 # do all runs that have no record, then the tables
    python -m benchmarks.emoji --arms awm      # of some arms only
    python -m benchmarks.emoji --tables        # tables, plots and summary.json from the records

An arm is one variant of the method. A sweep of learning rates comes first, on its own seeds; each
arm then uses its best rate. Runs go side by side, with one process and one thread each. Interrupted
runs are resumed. Records are JSON files below `benchmarks/emoji/`.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from benchmarks.emoji.arms import (
    ARMS,
    MAIN_PAIRS,
    MAIN_SEEDS,
    PAIRS,
    SEEDS,
    TUNING_SEEDS,
)
from benchmarks.emoji.jobs import HERE, Job, do_all
from benchmarks.evidence import best_rate, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def runnable(arms: Sequence[str], pair: str) -> list[str]:
    """The arms that belong to a pair and that this version still has settings for."""
    return [arm for arm in arms if pair in ARMS[arm].pairs and not ARMS[arm].measured_at]


def tuning_jobs(arms: Sequence[str], pairs: Sequence[str]) -> Iterator[Job]:
    """The sweeps that these arms need on these pairs."""
    for seed in TUNING_SEEDS:
        for pair in pairs:
            needed = (ARMS[arm].tuned_as or arm for arm in runnable(arms, pair))
            for arm in dict.fromkeys(needed):
                for rate in ARMS[arm].rates:
                    yield Job(pair=pair, arm=arm, seed=seed, learning_rate=rate, is_tuning=True)


def study_jobs(arms: Sequence[str], pairs: Sequence[str]) -> Iterator[Job]:
    """The comparison, seed by seed, so that complete seeds can be compared at any time."""
    chosen = [(pair, arm) for pair in pairs for arm in runnable(arms, pair)]
    rates = {place: tuned_rate(*place) for place in chosen}
    for seed in MAIN_SEEDS:
        for (pair, arm), rate in rates.items():
            if seed in SEEDS or (ARMS[arm].is_main and pair in MAIN_PAIRS):
                yield Job(pair=pair, arm=arm, seed=seed, learning_rate=rate)


def tuned_rate(pair: str, arm: str) -> float:
    """The best learning rate of an arm's sweep, by hypervolume averaged over the images."""
    return best_rate(sweep(HERE / "tuning" / pair / (ARMS[arm].tuned_as or arm)))


def main() -> None:
    """Do the missing runs and print the tables."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    arguments.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    arguments.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments.add_argument("--tables", action="store_true", help="do no runs")
    chosen = arguments.parse_args()
    if not chosen.tables:
        failed = do_all(list(tuning_jobs(chosen.arms, chosen.pairs)), chosen.workers)
        if not failed:
            failed = do_all(list(study_jobs(chosen.arms, chosen.pairs)), chosen.workers)
        if failed:
            sys.exit(f"{failed} runs failed; start again to repeat them")
    from benchmarks.emoji.tables import write_all  # noqa: PLC0415 - only when all runs are done

    write_all(HERE)


if __name__ == "__main__":
    main()
