"""The tables of the comparison, made from its records."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks.common import print_headline, print_table, say
from benchmarks.evidence import (
    Comparison,
    by_arm,
    holm,
    quartiles,
    read_records,
    shown,
    shown_ratios,
)
from benchmarks.toy.arms import ARMS, BASELINE, PAIRS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.evidence import Record
    from benchmarks.toy.sweep import Sweep

    Arms = Mapping[str, Mapping[int, Record]]

_COLUMNS = (
    "Arm",
    "Learning rate",
    "Hypervolume",
    "Gain",
    "p",
    "p (Holm)",
    "Fewer images",
    "Fewer rows",
    "Expected utility",
    "Policies",
)


def print_all(sweep: Sweep, folder: Path) -> None:
    """Print a table for each pair, and the headline figures as the last line."""
    headline = {}
    for pair in PAIRS:
        arms = by_arm(read_records(folder / pair))
        found = {
            name: Comparison.of(name, arms[name], arms[BASELINE]) for name in ARMS if name in arms
        }
        corrected = holm({name: one.p for name, one in found.items() if ARMS[name].is_main})
        seeds = len(found[BASELINE].seeds)
        say(f"## {pair}: medians and quartiles over {seeds} paired seeds\n")
        order = sorted(found, key=lambda name: -quartiles(found[name].hypervolumes)[1])
        rows = [_row(found[n], arms[n], sweep.best(pair, n), corrected.get(n)) for n in order]
        print_table(_COLUMNS, rows)
        headline[pair] = {name: found[name].headline(corrected.get(name)) for name in order}
    print_headline(headline)


def _row(
    one: Comparison, runs: Mapping[int, Record], learning_rate: float, corrected: float | None
) -> list[object]:
    """The row of one arm; `corrected` is the corrected p-value of a main comparison."""
    measures = [runs[seed].measures() for seed in one.seeds]
    against_baseline: list[object] = [
        shown(one.gains),
        f"{one.p:.2g}",
        "-" if corrected is None else f"{corrected:.2g}",
        shown_ratios(one.image_ratios),
        shown_ratios(one.row_ratios),
    ]
    return [
        ARMS[one.arm].title,
        f"{learning_rate:g}",
        shown(one.hypervolumes),
        *(["-"] * len(against_baseline) if one.arm == BASELINE else against_baseline),
        shown([m["expected_utility"] for m in measures]),
        f"{statistics.median(m['archive_size'] for m in measures):.0f}",
    ]
