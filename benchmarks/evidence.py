"""Shared parts of the learning benchmarks: the record of a run, and the comparison of arms.

A record is the JSON of one run. For each generation it holds the costs so far, and the archive's
returns on a report set that played no part in the run. Arms (variants of the method) are compared
by paired seeds.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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
SECOND = "the pair's second objective"  # a value of a setting that stands for its name
REMOVED = "7aaf014"  # the last commit with settings that were removed because they did not help
NEVER = math.inf  # as a cost: more than any run had
Key = TypeVar("Key")
_NUM_USERS = 100
_GRADIENT_ROW = 3  # a row forward and backward costs about as much as three rows forward


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A run after one of its generations.

    Attributes:
        images: scored so far, for learning, calibration and the search's decisions.
        rows: UNet rows so far; a row with gradient counts three times.
        seconds: wall time so far, without measuring archives on the report set.
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
        pair: name of the pair of objectives.
        arm: name of the variant.
        seed: of the run; runs with the same seed are judged on the same prompts and noise.
        learning_rate: of the run.
        objectives: with the run's reference and ideal points.
        returns: id -> M mean rewards on the report set, raw units, for every policy that was ever
            in the archive.
        points: one for the base model alone, then one per generation.
        found: id -> share of report pictures in which the independent judge finds the subject;
            empty without a judge.
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
        """Write the record as JSON, atomically."""
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
        """The same run with another reference point for its hypervolumes.

        The run's own points are the base model's mean -+ 3 spreads within a prompt.

        Args:
            spreads: distance of the reference point below the base model's mean, in spreads.
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
        """The archive (n, M) after a generation, on the report set, in z-units."""
        returns = np.array([self.returns[name] for name in self.points[index].archive])
        return to_z(returns, self.objectives)

    def hypervolumes(self) -> list[float]:
        """Hypervolume of the archive at every point."""
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
        point = self.first_at(target) or self.points[-1]
        return statistics.mean(self.found[name] for name in point.archive)

    def area(self) -> float:
        """Hypervolume averaged over the images of the run; it rewards learning early and far."""
        images = [point.images for point in self.points]
        return float(np.average(self.hypervolumes()[:-1], weights=np.diff(images)))

    def cost_to_reach(self, target: float, axis: str = "images") -> float:
        """The run's cost at its first point with at least this hypervolume, or NEVER.

        Args:
            target: hypervolume.
            axis: "images", "rows" or "seconds".
        """
        return _cost(self.first_at(target), axis)

    def first_at(self, target: float) -> Point | None:
        """The run's first point with at least this hypervolume."""
        numbered = enumerate(self.points)
        return next((point for i, point in numbered if hypervolume(self.z(i)) >= target), None)

    def measures(self) -> dict[str, float]:
        """Measures of the final archive, and the run's total costs."""
        z, last = self.z(), self.points[-1]
        users = _users(z.shape[1])
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


def _cost(point: Point | None, axis: str) -> float:
    return NEVER if point is None else float(getattr(point, axis))


@lru_cache
def _users(num_objectives: int) -> np.ndarray:
    return even_weights(_NUM_USERS, num_objectives)


def command_line(settings: Mapping[str, str], seed: int, learning_rate: float) -> list[str]:
    """A run's arguments for `mo_train.py`: settings over the faithful recipe.

    Args:
        settings: dotted name -> value, or `SECOND`; a pair of rewards among them.
        seed: of the run.
        learning_rate: of the run.
    """
    every = {**settings, "seed": str(seed), "train.learning_rate": str(learning_rate)}
    _, second = every["rewards.names"].split(",")
    every = {name: second if value == SECOND else value for name, value in every.items()}
    return [f"--config={FAITHFUL}", *(f"--config.{name}={value}" for name, value in every.items())]


def row_equivalents(unet_rows: int, gradient_rows: int) -> int:
    """UNet rows weighted by cost.

    Args:
        unet_rows: all rows passed forward.
        gradient_rows: how many of them were also passed backward.
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
    """The learning rate with the largest value in a sweep.

    >>> best_rate({0.01: 0.3, 0.02: 0.4, 0.04: 0.2})
    0.02
    """
    return max(found, key=lambda rate: found[rate])


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An arm against the baseline, on the seeds that both have.

    Attributes:
        arm: name of the variant.
        seeds: the paired seeds.
        hypervolumes: of the arm, one per seed.
        gains: hypervolume of the arm minus hypervolume of the baseline, one per seed.
        image_ratios: one per seed: images that the baseline needed for its final hypervolume, over
            images that the arm needed for the same; 0 if the arm never reached it.
        row_ratios: the same for UNet rows.
        time_ratios: the same for seconds, which depend on how busy the machine was.
        p: of an exact two-sided Wilcoxon signed-rank test of the gains; 1 for the baseline.
    """

    arm: str
    seeds: tuple[int, ...]
    hypervolumes: tuple[float, ...]
    gains: tuple[float, ...]
    image_ratios: tuple[float, ...]
    row_ratios: tuple[float, ...]
    time_ratios: tuple[float, ...]
    p: float

    @classmethod
    def of(cls, arm: str, runs: Mapping[int, Record], baseline: Mapping[int, Record]) -> Comparison:
        """Compare the runs on the seeds that both have."""
        seeds = sorted(set(runs) & set(baseline))
        targets = [hypervolume(baseline[seed].z()) for seed in seeds]
        final = [hypervolume(runs[seed].z()) for seed in seeds]
        gains = [value - target for value, target in zip(final, targets, strict=True)]
        reached = [
            (baseline[seed].first_at(target), runs[seed].first_at(target))
            for seed, target in zip(seeds, targets, strict=True)
        ]

        def ratios(axis: str) -> tuple[float, ...]:
            return tuple(_cost(theirs, axis) / _cost(own, axis) for theirs, own in reached)

        return cls(
            arm=arm,
            seeds=tuple(seeds),
            hypervolumes=tuple(final),
            gains=tuple(gains),
            image_ratios=ratios("images"),
            row_ratios=ratios("rows"),
            time_ratios=ratios("seconds"),
            p=paired_p(gains),
        )

    def headline(self, corrected: float | None) -> dict[str, Any]:
        """Medians and p-values; `corrected` is the corrected p-value, None if there is none."""
        return {
            "hypervolume": quartiles(self.hypervolumes)[1],
            "images_ratio": quartiles(self.image_ratios)[1],
            "rows_ratio": quartiles(self.row_ratios)[1],
            "p": self.p,
            "p_holm": corrected,
        }


def paired_p(differences: Sequence[float]) -> float:
    """p-value of an exact two-sided Wilcoxon signed-rank test of paired differences around zero.

    >>> paired_p([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])  # 2 of 2^8 sign patterns
    0.0078125
    """
    if not any(differences):
        return 1.0
    return float(wilcoxon(differences, method="exact").pvalue)


def holm(ps: Mapping[Key, float]) -> dict[Key, float]:
    """Correct p-values for their number by the step-down procedure of Holm (1979).

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    out: dict[Key, float] = {}
    least = 0.0
    for rank, (name, p) in enumerate(sorted(ps.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(ps) - rank) * p))
        out[name] = least
    return out


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile. Each is one of the values, as NEVER may be.

    >>> quartiles([3.0, 1.0, 2.0, math.inf])
    (1.0, 2.0, 3.0)
    """
    found = np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf")
    return float(found[0]), float(found[1]), float(found[2])


def shown(values: Sequence[float], digits: int = 3) -> str:
    """Median and quartiles, formatted for a table.

    >>> shown([1.0, 2.0, 3.0, 4.0], digits=1)
    '2.0 [1.0, 3.0]'
    """
    low, median, high = quartiles(values)
    return f"{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def shown_ratios(ratios: Sequence[float]) -> str:
    """Median and quartiles of ratios of costs, formatted for a table; 0 becomes "never".

    >>> shown_ratios([0.0, 0.0, 0.0, 2.0])
    'never [never, never]'
    """
    words = ["never" if value == 0 else f"{value:.1f}x" for value in quartiles(ratios)]
    return f"{words[1]} [{words[0]}, {words[2]}]"


def median_curve(
    records: Sequence[Record], axis: str, num_points: int = 200
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Hypervolume by cost over the runs of an arm: lower quartile, median, upper quartile.

    Each run's curve is a staircase: between generations it keeps the last value.

    Args:
        records: of one arm.
        axis: "images" or "rows".
        num_points: of each curve.

    Returns:
        Three pairs (cost, hypervolume), up to the end of the shortest run.
    """
    curves = [([getattr(p, axis) for p in r.points], r.hypervolumes()) for r in records]
    costs = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), num_points)
    values = [np.array(y)[np.searchsorted(x, costs, side="right") - 1] for x, y in curves]
    levels = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    return tuple((costs, level) for level in levels)
