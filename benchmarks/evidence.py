"""What the learning benchmarks share: the record of a run, and how arms are compared.

A record is the JSON of one run: what each generation had spent, and what the archive that it left
is worth on a report set that took no part in the run. Arms are compared by paired seeds.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import wilcoxon

from ddpo.files import write_json
from morl.indicators import expected_utility, hypervolume
from morl.objectives import to_z
from morl.types import Objective
from morl.weights import even_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FAITHFUL = Path(__file__).parents[1] / "config" / "faithful.py"
REMOVED = "7aaf014"  # the last commit with the settings of arms that did not pay
NEVER = math.inf  # a value: more images than any run had
_NUM_USERS = 100
_GRADIENT_ROW = 3  # a UNet row forward and backward costs about three rows forward


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A run after one of its generations.

    Attributes:
        images: scored so far, to learn from, to calibrate and to decide the search.
        rows: UNet rows so far; one with gradient counts three times.
        seconds: wall time so far, without what measured the archives on the report set.
        archive: ids of the archive's policies.
    """

    images: int
    rows: int
    seconds: float
    archive: tuple[str, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Point:
        """From the dictionary of its fields."""
        return cls(**{**data, "archive": tuple(data["archive"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run.

    Attributes:
        pair: of objectives.
        arm: the method.
        seed: of the run; runs of one seed are judged on the same prompts and noise.
        learning_rate: of the run.
        objectives: with the run's reference and ideal points.
        returns: id -> M mean rewards on the report set, raw units, of every policy that was ever
            in the archive.
        points: the base model alone, then one for each generation.
        found: id -> share of the report set's pictures in which a judge that no reward knows finds
            the subject; empty where there is no judge, or a run was recorded before there was.
    """

    pair: str
    arm: str
    seed: int
    learning_rate: float
    objectives: tuple[Objective, ...]
    returns: dict[str, list[float]]
    points: tuple[Point, ...]
    found: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write as JSON; the file is whole or absent."""
        data = asdict(self) | {"objectives": [o.to_json() for o in self.objectives]}
        write_json(path, data, for_people=False)

    @classmethod
    def read(cls, path: Path) -> Record:
        """The inverse of `write`."""
        data = json.loads(path.read_text(encoding="utf-8"))
        data["objectives"] = tuple(Objective.from_json(o) for o in data["objectives"])
        data["points"] = tuple(Point.from_json(point) for point in data["points"])
        return cls(**data)

    def seen_from(self, spreads: float, *, is_capped: bool = False) -> Record:
        """The same run, with another idea of what a hypervolume is.

        The run's own points are the base model's mean -+ 3 spreads within a prompt.

        Args:
            spreads: how far the reference point lies below the base model's mean.
            is_capped: whether a return above the ideal point counts as the ideal.
        """
        objectives, ideal = [], []
        for each in self.objectives:
            mean, spread = (each.reference + each.ideal) / 2, (each.ideal - each.reference) / 6
            objectives.append(replace(each, reference=mean - spreads * spread))
            ideal.append(each.ideal if is_capped else math.inf)
        returns = {
            name: np.minimum(values, ideal).tolist() for name, values in self.returns.items()
        }
        return replace(self, objectives=tuple(objectives), returns=returns)

    def z(self, index: int = -1) -> np.ndarray:
        """(n, M) the archive after a generation, on the report set, in z-units."""
        returns = np.array([self.returns[name] for name in self.points[index].archive])
        return to_z(returns, self.objectives)

    def hypervolumes(self) -> list[float]:
        """Of the archive at every point."""
        return [hypervolume(self.z(index)) for index in range(len(self.points))]

    def subjects_found(self, target: float = math.inf) -> float:
        """Mean share of pictures with their subject, over the archive that first has a hypervolume.

        Args:
            target: the hypervolume; a run that never has it is judged by its final archive.

        Returns:
            NaN where nobody judged.
        """
        if not self.found:
            return math.nan
        volumes = self.hypervolumes()
        reached = [i for i, value in enumerate(volumes) if value >= target] or [len(volumes) - 1]
        return statistics.mean(self.found[name] for name in self.points[reached[0]].archive)

    def area(self) -> float:
        """Hypervolume averaged over the images of the run: high for who learns early and far."""
        images = [point.images for point in self.points]
        return float(np.average(self.hypervolumes()[:-1], weights=np.diff(images)))

    def cost_to_reach(self, target: float, axis: str = "images") -> float:
        """What the run had spent at its first point with at least this hypervolume, or NEVER.

        Args:
            target: hypervolume.
            axis: "images", "rows" or "seconds".
        """
        for point, value in zip(self.points, self.hypervolumes(), strict=True):
            if value >= target:
                return float(getattr(point, axis))
        return NEVER

    def measures(self) -> dict[str, float]:
        """Of the final archive."""
        z, last = self.z(), self.points[-1]
        users = even_weights(_NUM_USERS, z.shape[1])
        worst = np.array([self.returns[name] for name in last.archive]).min(axis=0).tolist()
        lowest = {f"lowest_{o.name}": v for o, v in zip(self.objectives, worst, strict=True)}
        return {
            "hypervolume": hypervolume(z),
            "expected_utility": expected_utility(z, users),
            "archive_size": float(len(z)),
            "images": float(last.images),
            "rows": float(last.rows),
            "seconds": last.seconds,
            **lowest,
        }


def command_line(settings: Mapping[str, str], seed: int, learning_rate: float) -> list[str]:
    """The words of a run for `mo_train.py`: settings over the faithful recipe.

    Args:
        settings: dotted name -> value.
        seed: of the run.
        learning_rate: of the run.
    """
    every = {**settings, "seed": str(seed), "train.learning_rate": str(learning_rate)}
    return [f"--config={FAITHFUL}", *(f"--config.{name}={value}" for name, value in every.items())]


def row_equivalents(unet_rows: int, gradient_rows: int) -> int:
    """UNet rows by cost.

    Args:
        unet_rows: all rows passed forward.
        gradient_rows: those of them that were passed backward too.
    """
    return unet_rows + (_GRADIENT_ROW - 1) * gradient_rows


def read_records(folder: Path) -> list[Record]:
    """All records below a folder."""
    return [Record.read(path) for path in sorted(folder.rglob("*.json"))]


def by_arm(records: Iterable[Record]) -> dict[str, dict[int, Record]]:
    """Arm -> seed -> record."""
    out: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in records:
        out[record.arm][record.seed] = record
    return dict(out)


def sweep(folder: Path) -> dict[float, float]:
    """Learning rate -> mean `Record.area` of the records below a folder."""
    volumes: dict[float, list[float]] = defaultdict(list)
    for record in read_records(folder):
        volumes[record.learning_rate].append(record.area())
    return {rate: statistics.mean(values) for rate, values in sorted(volumes.items())}


def best_rate(found: Mapping[float, float]) -> float:
    """The learning rate that a sweep found to be worth most.

    >>> best_rate({0.01: 0.3, 0.02: 0.4, 0.04: 0.2})
    0.02
    """
    return max(found, key=lambda rate: found[rate])


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An arm against the baseline on the seeds that both have.

    Attributes:
        arm: the method.
        seeds: paired.
        hypervolumes: of the arm, one a seed.
        gains: hypervolume of the arm minus that of the baseline, one a seed.
        image_ratios: images that the baseline needed to reach its final hypervolume over those the
            arm needed to reach it; 0 where it never did.
        row_ratios: the same of UNet rows.
        p: of an exact two-sided Wilcoxon signed-rank test of the gains; 1 for the baseline.
    """

    arm: str
    seeds: tuple[int, ...]
    hypervolumes: tuple[float, ...]
    gains: tuple[float, ...]
    image_ratios: tuple[float, ...]
    row_ratios: tuple[float, ...]
    p: float

    @classmethod
    def of(cls, arm: str, runs: Mapping[int, Record], baseline: Mapping[int, Record]) -> Comparison:
        """Compare the runs of the seeds that both have."""
        seeds = sorted(set(runs) & set(baseline))
        targets = [baseline[seed].hypervolumes()[-1] for seed in seeds]
        final = [runs[seed].hypervolumes()[-1] for seed in seeds]
        gains = [value - target for value, target in zip(final, targets, strict=True)]

        def ratios(axis: str) -> tuple[float, ...]:
            return tuple(
                baseline[seed].cost_to_reach(target, axis) / runs[seed].cost_to_reach(target, axis)
                for seed, target in zip(seeds, targets, strict=True)
            )

        return cls(
            arm=arm,
            seeds=tuple(seeds),
            hypervolumes=tuple(final),
            gains=tuple(gains),
            image_ratios=ratios("images"),
            row_ratios=ratios("rows"),
            p=paired_p(gains),
        )

    def headline(self, corrected: float | None) -> dict[str, Any]:
        """Medians and p-values; `corrected` is the p-value corrected, None if it is not."""
        return {
            "hypervolume": quartiles(self.hypervolumes)[1],
            "images_ratio": quartiles(self.image_ratios)[1],
            "rows_ratio": quartiles(self.row_ratios)[1],
            "p": self.p,
            "p_holm": corrected,
        }


def paired_p(differences: Sequence[float]) -> float:
    """Exact two-sided Wilcoxon signed-rank test that paired differences lie about zero.

    >>> paired_p([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])  # 2 of 2^8 sign patterns
    0.0078125
    """
    if not any(differences):
        return 1.0
    return float(wilcoxon(differences, method="exact").pvalue)


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number: Holm's step-down procedure (Holm 1979).

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    out: dict[str, float] = {}
    least = 0.0
    for rank, (name, p) in enumerate(sorted(ps.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(ps) - rank) * p))
        out[name] = least
    return out


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile, each one of the values: NEVER is one of them.

    >>> quartiles([3.0, 1.0, 2.0, math.inf])
    (1.0, 2.0, 3.0)
    """
    found = np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf")
    return float(found[0]), float(found[1]), float(found[2])


def shown(values: Sequence[float], digits: int = 3) -> str:
    """Median and quartiles as a table shows them.

    >>> shown([1.0, 2.0, 3.0, 4.0], digits=1)
    '2.0 [1.0, 3.0]'
    """
    low, median, high = quartiles(values)
    return f"{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def shown_ratios(ratios: Sequence[float]) -> str:
    """Median and quartiles of how many times fewer were needed; "never" for 0.

    >>> shown_ratios([0.0, 0.0, 0.0, 2.0])
    'never [never, never]'
    """
    words = ["never" if value == 0 else f"{value:.1f}x" for value in quartiles(ratios)]
    return f"{words[1]} [{words[0]}, {words[2]}]"


def median_curve(
    records: Sequence[Record], axis: str, num_points: int = 200
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Hypervolume by cost over the runs of an arm: lower quartile, median, upper quartile.

    Each run's curve is a staircase: it has what its latest generation left.

    Args:
        records: of one arm.
        axis: "images" or "rows".
        num_points: of each curve.

    Returns:
        Three pairs (cost, hypervolume), as far as the shortest run goes.
    """
    curves = [([getattr(p, axis) for p in r.points], r.hypervolumes()) for r in records]
    costs = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), num_points)
    values = [np.array(y)[np.searchsorted(x, costs, side="right") - 1] for x, y in curves]
    levels = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    return tuple((costs, level) for level in levels)
