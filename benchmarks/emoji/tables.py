"""Tables, plots and headline figures of the study, made from its records."""

from __future__ import annotations

import json
import math
import statistics
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.common import print_headline, print_table, say
from benchmarks.emoji.arms import (
    ARMS,
    BASELINE,
    FEW_STEP,
    FEW_STEP_GRADIENT,
    GRADIENT,
    HYBRID,
    MAIN_PAIRS,
    PAIRS,
    RECOMMENDED,
)
from benchmarks.evidence import (
    Comparison,
    best_rate,
    by_arm,
    holm,
    median_curve,
    read_records,
    shown,
    shown_ratios,
    sweep,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.evidence import Record

    Arms = Mapping[str, Mapping[int, Record]]

_ASKED = (RECOMMENDED, GRADIENT)
_FEW_STEP = (  # an arm on the few-step base, and the one that it is compared with
    (FEW_STEP, RECOMMENDED),
    (FEW_STEP_GRADIENT, RECOMMENDED),
    (FEW_STEP_GRADIENT, GRADIENT),
)


def write_all(folder: Path) -> None:
    """Print the tables of all pairs that have records; write plots and `summary.json` beside them.

    Args:
        folder: holds `results/` and `tuning/`.
    """
    records = {pair: by_arm(read_records(folder / "results" / pair)) for pair in PAIRS}
    found = compared({pair: arms for pair, arms in records.items() if BASELINE in arms})
    for pair, rows in found.items():
        arms = records[pair]
        say(f"## {', '.join(o.name for o in arms[BASELINE][0].objectives)}\n")
        _print_pair(arms, rows)
        _print_views(arms)
        _print_few_step(arms)
        _print_sweep(folder / "tuning" / pair)
        _plot_curves(folder / f"{pair}_hypervolume.png", arms)
        _plot_fronts(folder / f"{pair}_fronts.png", arms)
    summary = {"recommended": RECOMMENDED, **{p: _headline(rows) for p, rows in found.items()}}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print_headline(summary)


def compared(pairs: Mapping[str, Arms]) -> dict[str, dict[str, tuple[Comparison, float]]]:
    """Pair -> arm -> its comparison with the baseline, and the p-value corrected by Holm.

    The study's main question concerns two arms on each of two pairs: DDPO's recommended arm and the
    arm with gradients of rewards. Their tests form one family. All others have fewer seeds; they
    form one further family per pair.
    """
    found = {
        pair: {
            name: Comparison.of(name, arms[name], arms[BASELINE]) for name in ARMS if name in arms
        }
        for pair, arms in pairs.items()
    }
    families: dict[str, dict[tuple[str, str], float]] = {}
    for pair, rows in found.items():
        for name, one in rows.items():
            if name != BASELINE:
                family = "main" if pair in MAIN_PAIRS and name in _ASKED else pair
                families.setdefault(family, {})[pair, name] = one.p
    corrected = {place: p for family in families.values() for place, p in holm(family).items()}
    return {
        pair: {name: (one, corrected.get((pair, name), 1.0)) for name, one in rows.items()}
        for pair, rows in found.items()
    }


def _print_sweep(folder: Path) -> None:
    say(
        "Learning rates tried on other seeds: hypervolume averaged over the images, the best used\n"
    )
    rows = []
    for arm in ARMS:
        if means := sweep(folder / arm):
            cells = [f"{rate:g}: {value:.4f}" for rate, value in means.items()]
            rows.append([ARMS[arm].title, f"{best_rate(means):g}", ", ".join(cells)])
    print_table(["Arm", "Used", "Sweep"], rows)


def _print_pair(arms: Arms, found: Mapping[str, tuple[Comparison, float]]) -> None:
    columns = [
        "Arm",
        "Seeds",
        "Hypervolume",
        "Gain over the baseline",
        "p (Holm)",
        "Fewer images",
        "Fewer rows",
        "Expected utility",
        "Policies",
        "Lowest clip_alignment",
        "Subject found",
        "Found at the baseline's hypervolume",
        "Minutes",
    ]
    rows = []
    for name, (one, p) in found.items():
        measures = [arms[name][seed].measures() for seed in one.seeds]
        is_baseline = name == BASELINE
        lowest = [m["lowest_clip_alignment"] for m in measures]
        rows.append(
            [
                ARMS[name].title,
                len(one.seeds),
                shown(one.hypervolumes),
                "-" if is_baseline else shown(one.gains),
                "-" if is_baseline else f"{p:.2g}",
                "1" if is_baseline else shown_ratios(one.image_ratios),
                "1" if is_baseline else shown_ratios(one.row_ratios),
                shown([m["expected_utility"] for m in measures]),
                f"{statistics.median(m['archive_size'] for m in measures):.0f}",
                f"{statistics.median(lowest):.2f}",
                _share([arms[name][seed].subjects_found() for seed in one.seeds]),
                _share(
                    [
                        arms[name][s].subjects_found(arms[BASELINE][s].hypervolumes()[-1])
                        for s in one.seeds
                    ]
                ),
                f"{statistics.median(m['seconds'] for m in measures) / 60:.1f}",
            ]
        )
    print_table(columns, rows)


def _share(values: list[float]) -> str:
    """Median of the seeds that were judged."""
    judged = [value for value in values if not math.isnan(value)]
    return f"{statistics.median(judged):.0%} ({len(judged)} seeds)" if judged else "-"


def _print_views(arms: Arms) -> None:
    """The comparison with other reference points, for the main arms and the hybrid one."""
    views = {
        "mean - 2 spreads": (2.0, False),
        "mean - 3 spreads": (3.0, False),
        "mean - 4 spreads": (4.0, False),
        "mean - 3 spreads, capped at the ideal": (3.0, True),
    }
    chosen = [name for name in (RECOMMENDED, GRADIENT, HYBRID) if name in arms]
    rows = []
    for title, (spreads, is_capped) in views.items():
        seen = {
            name: {
                seed: record.seen_from(spreads, is_capped=is_capped)
                for seed, record in arms[name].items()
            }
            for name in (BASELINE, *chosen)
        }
        for name in chosen:
            one = Comparison.of(name, seen[name], seen[BASELINE])
            cells = (shown(one.gains), f"{one.p:.2g}")
            ratios = (shown_ratios(one.image_ratios), shown_ratios(one.row_ratios))
            rows.append([title, ARMS[name].title, len(one.seeds), *cells, *ratios])
    head = ["Reference", "Arm", "Seeds", "Gain over the baseline", "p"]
    print_table([*head, "Fewer images", "Fewer rows"], rows)


def _print_few_step(arms: Arms) -> None:
    """Arms on the few-step base against arms on the base model, at the latter's final value."""
    rows = []
    for name, other in _FEW_STEP:
        if name not in arms or other not in arms:
            continue
        one = Comparison.of(name, arms[name], arms[other])
        starts = [[arms[a][seed].hypervolumes()[0] for seed in one.seeds] for a in (name, other)]
        rows.append(
            [
                ARMS[name].title,
                ARMS[other].title,
                len(one.seeds),
                " / ".join(f"{statistics.median(values):.3f}" for values in starts),
                shown(one.gains),
                f"{one.p:.2g}",
                shown_ratios(one.image_ratios),
                shown_ratios(one.row_ratios),
                shown_ratios(one.time_ratios),
            ]
        )
    if rows:
        head = ["Arm", "Compared with", "Seeds", "Hypervolume at the start", "Gain", "p"]
        print_table([*head, "Fewer images", "Fewer rows", "Less time"], rows)


def _headline(found: Mapping[str, tuple[Comparison, float]]) -> dict[str, Any]:
    """The figures of a pair's table in short."""
    return {name: {"seeds": len(one.seeds), **one.headline(p)} for name, (one, p) in found.items()}


def _plot_curves(path: Path, arms: Arms) -> None:
    """Median hypervolume on the report set by images and by UNet rows.

    The arms of the main question are drawn bold, with quartile bands.
    """
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    for axis, name in zip(axes, ("images", "rows"), strict=True):
        for colour, (arm, method) in zip(plt.get_cmap("tab20").colors, ARMS.items(), strict=False):
            if arm not in arms:
                continue
            low, median, high = median_curve(list(arms[arm].values()), name)
            width = 2.5 if method.is_main else 1.0
            axis.step(*median, where="post", label=method.title, color=colour, lw=width)
            if method.is_main:
                axis.fill_between(median[0], low[1], high[1], step="post", alpha=0.2, color=colour)
        axis.set_xlabel({"images": "scored images", "rows": "UNet rows (with gradient: 3)"}[name])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("hypervolume on the report set")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right", fontsize="x-small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_fronts(path: Path, arms: Arms) -> None:
    """The archive on the report set over the generations of seed 0: baseline and recommended."""
    chosen = [name for name in (BASELINE, RECOMMENDED) if name in arms]
    figure, axes = plt.subplots(
        1,
        len(chosen),
        figsize=(6 * len(chosen), 4.5),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for axis, name in zip(axes[0], chosen, strict=True):
        _plot_front(axis, arms[name][0])
        axis.set_title(ARMS[name].title, fontsize="medium")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_front(axis: Axes, record: Record) -> None:
    colours = plt.get_cmap("viridis")(np.linspace(0, 1, len(record.points)))
    for index, (point, colour) in enumerate(zip(record.points, colours, strict=True)):
        returns = np.array(sorted(record.returns[name] for name in point.archive))
        label = f"generation {index}" if index in (0, len(record.points) - 1) else None
        axis.plot(returns[:, 0], returns[:, 1], "o-", color=colour, ms=3, lw=1, label=label)
    axis.set_xlabel(record.objectives[0].name)
    axis.set_ylabel(f"{record.objectives[1].name} [{record.objectives[1].unit}]")
    axis.legend(fontsize="small")
    axis.grid(alpha=0.3)
