"""Several runs against each other: fronts in one plot, hypervolume over images and UNet rows."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from config.settings.flat import flatten
from front.errors import ChoiceError, FrontError
from front.labels import label_axis, plain_label
from morl.indicators import expected_utility, hypervolume, sparsity
from morl.objectives import to_z
from morl.pareto import non_dominated
from morl.types import BASE_POLICY
from morl.weights import even_weights
from run.records import SEARCH, SearchRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from front.front import Front
    from morl.types import Array, Objective

_NUM_USERS = 101
# Settings whose differences are not reported: where runs lie, how they were watched.
_UNIMPORTANT = {"logdir", "run_name", "resume_from", "trackers", "num_threads"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Hypervolume of all policies found so far (selection set, z-units) after each generation.

    Attributes:
        images: (g,) training images sampled.
        unet_rows: (g,) rows of all UNet passes.
        hypervolumes: (g,).
    """

    images: Array
    unet_rows: Array
    hypervolumes: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contender:
    """A run in the comparison, its numbers under the common points.

    Attributes:
        label: shortest name that distinguishes it from the others.
        front: of the run.
        z: (n, M) report returns in z-units.
        hypervolume: of the front on the report set.
        sparsity: of the front on the report set.
        expected_utility: of the front on the report set.
        num_joint: policies of it that no policy of any run dominates on the report set.
        curve: None if the run's search or metrics are not there.
    """

    label: str
    front: Front
    z: Array
    hypervolume: float
    sparsity: float
    expected_utility: float
    num_joint: int
    curve: Curve | None

    def to_json(self) -> dict[str, Any]:
        """What `compare --json` prints."""
        return {
            "run": str(self.front.path),
            "policies": len(self.front.policies),
            "on_joint_front": self.num_joint,
            "hypervolume": self.hypervolume,
            "sparsity": self.sparsity,
            "expected_utility": self.expected_utility,
            "train_images": self.front.costs.train,
            "unet_rows": self.front.costs.unet_rows,
        }


def common_objectives(
    fronts: Sequence[Front],
    reference: Sequence[float] | None = None,
    ideal: Sequence[float] | None = None,
) -> tuple[Objective, ...]:
    """The objectives of all the runs, with the points they share or those given.

    Args:
        fronts: of the runs.
        reference: (M,) raw returns that count as z = 0 for all of them.
        ideal: (M,) raw returns that count as z = 1; given together with `reference`.

    Raises:
        ChoiceError: if the runs have other objectives, other points and none are given, or the
            points given are wrong.
    """
    first = fronts[0]
    for other in fronts[1:]:
        if _kinds(other) != _kinds(first):
            raise ChoiceError(
                f"these runs have different objectives, which cannot be compared: {first.path} has "
                f"{', '.join(_kinds(first))}; {other.path} has {', '.join(_kinds(other))}"
            )
    if (reference is None) != (ideal is None):
        raise ChoiceError("--reference and --ideal go together")
    if reference is not None and ideal is not None:
        if not len(reference) == len(ideal) == len(first.objectives):
            raise ChoiceError(
                f"--reference and --ideal must be {len(first.objectives)} numbers each, one for "
                f"each of {', '.join(first.names)}"
            )
        try:
            return tuple(
                dataclasses.replace(objective, reference=low, ideal=high)
                for objective, low, high in zip(first.objectives, reference, ideal, strict=True)
            )
        except ValueError as error:
            raise ChoiceError(str(error)) from error
    for other in fronts[1:]:
        if not np.allclose(_points(other), _points(first), rtol=1e-9, atol=0):
            low, high = (",".join(f"{value:.6g}" for value in row) for row in _points(first))
            raise ChoiceError(
                f"{first.path} and {other.path} have different reference or ideal points, so their "
                "hypervolumes measure different things; compare them under common ones, for "
                f"example the first run's: --reference={low} --ideal={high}"
            )
    return first.objectives


def _kinds(front: Front) -> list[str]:
    return [f"{objective.name} [{objective.unit}]" for objective in front.objectives]


def _points(front: Front) -> Array:
    """(2, M) reference and ideal."""
    points = [[o.reference for o in front.objectives], [o.ideal for o in front.objectives]]
    return np.array(points)


def compare(fronts: Sequence[Front], objectives: Sequence[Objective]) -> list[Contender]:
    """Measure runs under common points.

    Args:
        fronts: of the runs.
        objectives: from `common_objectives`.
    """
    points = [
        to_z([policy.report_returns for policy in front.policies], objectives) for front in fronts
    ]
    is_joint = non_dominated(np.vstack(points))
    users = even_weights(_NUM_USERS, len(objectives))
    ends = np.cumsum([len(z) for z in points])
    return [
        Contender(
            label=label,
            front=front,
            z=z,
            hypervolume=hypervolume(z),
            sparsity=sparsity(z),
            expected_utility=expected_utility(z, users),
            num_joint=int(is_joint[end - len(z) : end].sum()),
            curve=_curve(front, objectives),
        )
        for label, front, z, end in zip(_labels(fronts), fronts, points, ends, strict=True)
    ]


def _labels(fronts: Sequence[Front]) -> list[str]:
    """Folder names; whole paths where names repeat."""
    names = [front.path.resolve().name for front in fronts]
    return names if len(set(names)) == len(names) else [str(front.path) for front in fronts]


def _curve(front: Front, objectives: Sequence[Objective]) -> Curve | None:
    """Hypervolume after each generation, from every return the search has seen."""
    path = front.path / "metrics.jsonl"
    found = _found(front)
    if not found or not path.is_file():
        return None
    spent, rows = [], 0
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            metrics = json.loads(line)
            rows = metrics.get("cost/unet_rows", rows)
            if "morl/hypervolume" in metrics:
                spent.append((metrics["step"], rows))
    except (ValueError, KeyError) as error:
        raise FrontError(f"{path} is damaged: {error}") from error
    z = to_z([returns for _, returns in found], objectives)
    born = np.array([generation for generation, _ in found])
    volumes = [hypervolume(z[born <= generation]) for generation in range(-1, len(spent))]
    images, unet_rows = np.array([(0, 0), *spent], dtype=np.float64).T
    return Curve(images=images, unet_rows=unet_rows, hypervolumes=np.array(volumes))


def _found(front: Front) -> list[tuple[int, Array]]:
    """Generation and returns (M,) of every policy that the search has evaluated, if it is known.

    Copies without `search.json` give their history, which lacks the blends of a soup start.
    """
    if (front.path / SEARCH).is_file():
        policies = SearchRecord.read(front.path).policies
        return [(policy.generation, policy.returns) for policy in policies]
    base = [(-1, record.before) for record in front.history if record.parent == BASE_POLICY][:1]
    return [*base, *((record.generation, record.after) for record in front.history)]


def differing_settings(fronts: Sequence[Front]) -> list[str]:
    """A line for every setting that is not the same in all the runs."""
    flat = [dict(flatten(front.settings)) for front in fronts]
    lines = []
    for name in sorted({name for settings in flat for name in settings} - _UNIMPORTANT):
        values = [settings.get(name) for settings in flat]
        if any(value != values[0] for value in values):
            lines.append(f"{name}: {', '.join(str(value) for value in values)}")
    return lines


def plot_comparison(path: Path, contenders: Sequence[Contender]) -> None:
    """Draw the fronts, and hypervolume over images and over UNet rows.

    Args:
        path: of the picture; its suffix says which kind.
        contenders: from `compare`.
    """
    import matplotlib as mpl  # noqa: PLC0415 - slow, and not needed for the table

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    objectives = contenders[0].front.objectives
    num = len(objectives)
    pairs = [(i, j) for i in range(num) for j in range(i + 1, num)]
    figure, axes = plt.subplots(1, len(pairs) + 2, figsize=(5.6 * (len(pairs) + 2), 4.6))
    for axis, (i, j) in zip(axes, pairs, strict=False):
        for contender in contenders:
            policies = contender.front.policies
            means = np.array([policy.report_returns for policy in policies])
            errors = np.array([policy.report_std_error for policy in policies])
            axis.errorbar(
                means[:, i],
                means[:, j],
                xerr=errors[:, i],
                yerr=errors[:, j],
                fmt="o-" if num == 2 else "o",
                markersize=4,
                label=plain_label(contender.label),
            )
        label_axis(axis, "x", objectives[i])
        label_axis(axis, "y", objectives[j])
        axis.set_title("fronts, report set, ± 1 standard error")
    for axis, name, label in (
        (axes[-2], "images", "training images sampled"),
        (axes[-1], "unet_rows", "UNet rows"),
    ):
        for contender in contenders:
            if contender.curve is not None:
                spent = getattr(contender.curve, name)
                axis.plot(
                    spent, contender.curve.hypervolumes, "o-", label=plain_label(contender.label)
                )
        axis.set_xlabel(label)
        axis.set_ylabel("hypervolume [z-units]")
        axis.set_title("everything found so far, selection set")
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="best")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
