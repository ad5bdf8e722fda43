"""A line of the front as a slider: from one policy to another by the strength of one LoRA.

With the first policy loaded at strength 1, the LoRA of the direction dW_2 - dW_1 at strength s
draws the blend (1 - s) dW_1 + s dW_2, exactly. Measurements tell whether these blends are as good
as the front's own policies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError

from ddpo.agents.adapter import Adapter
from front.analysis.judge import Judge, check_same
from front.analysis.values import STD_ERRORS, TOLERANCE
from front.blend import depth_of_corner
from front.errors import FrontError
from front.tables import markdown_table, with_error
from morl.objectives import to_z
from run.progress import named_bar

if TYPE_CHECKING:
    from pathlib import Path

    from front.front import Front
    from front.member import FrontPolicy
    from morl.types import Array

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SliderPoint:
    """A place of the slider.

    Attributes:
        strength: of the direction's LoRA.
        returns: (M,) on the report set, raw units.
        std_error: (M,) of `returns`.
        gap: how far below the front it lies, z-units; see `gap_below`.
        gap_std_error: of `gap`.
    """

    strength: float
    returns: Array
    std_error: Array
    gap: float
    gap_std_error: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slider:
    """A measured slider from one policy to another.

    Attributes:
        first: where it stands at strength 0.
        second: where it stands at strength 1.
        points: at `STRENGTHS`.
        allowed: gap that counts as near the front, z-units.
    """

    first: FrontPolicy
    second: FrontPolicy
    points: tuple[SliderPoint, ...]
    allowed: float

    @property
    def worst(self) -> SliderPoint:
        """The place that lies deepest below the front."""
        return max(self.points, key=lambda point: point.gap)

    @property
    def is_near(self) -> bool:
        """Whether all of it is near the front, or within noise of it."""
        return all(
            point.gap <= max(self.allowed, STD_ERRORS * point.gap_std_error)
            for point in self.points
        )

    def table(self, front: Front) -> tuple[list[str], list[list[str]]]:
        """Header and rows: every place."""
        header = ["strength", *(f"{o.name} [{o.unit}]" for o in front.objectives)]
        header.append("below the front [z]")
        rows = [
            [
                f"{point.strength:g}",
                *(with_error(*pair) for pair in zip(point.returns, point.std_error, strict=True)),
                with_error(point.gap, point.gap_std_error) if point.gap else "0",
            ]
            for point in self.points
        ]
        return header, rows


def gap_below(point: Array, front: Array) -> tuple[float, int, int]:
    """How much a point needs in every objective before no point of a front dominates it.

    The additive epsilon indicator of one point (Zitzler et al. 2003).

    Args:
        point: (M,) z-units.
        front: (n, M).

    Returns:
        The gap, at least 0; the front's point and the objective that decide it.

    Example:
        >>> gap_below(np.array([0.5, 0.25]), np.array([[1.0, 0.0], [0.75, 0.75]]))
        (0.25, 1, 0)
        >>> gap_below(np.array([0.9, 0.9]), np.array([[1.0, 0.0], [0.75, 0.75]]))[0]
        0.0
    """
    ahead = front - point
    row = int(np.argmax(ahead.min(axis=1)))
    column = int(np.argmin(ahead[row]))
    return max(0.0, float(ahead[row, column])), row, column


def measure_slider(
    front: Front,
    first: FrontPolicy,
    second: FrontPolicy,
    *,
    model: str = "",
    device: str = "",
    rows_per_pass: int = 0,
) -> Slider:
    """Measure the blends that a slider goes through, on the report set.

    Args:
        front: of the run.
        first: where it starts.
        second: where it ends.
        model: where the base model is now; empty where it was.
        device: empty for a GPU if there is one.
        rows_per_pass: UNet rows at a time; 0 as many as in the run.

    Raises:
        UserError: if the run's parts cannot be used, or its policies score differently now.
    """
    ends = [Adapter.read(policy.file) for policy in (first, second)]
    adapters = [Adapter.blend([(ends[0], 1 - s), (ends[1], s)]) for s in STRENGTHS]
    judge = Judge(front, model, device, rows_per_pass)
    try:
        with named_bar("measuring places", len(adapters)) as bar:
            measured = judge.measure(adapters, bar.update)
    finally:
        judge.close()
    check_same(front, {first.id: measured[0], second.id: measured[-1]})
    spans = np.array([each.ideal - each.reference for each in front.objectives])
    points = []
    for strength, each in zip(STRENGTHS, measured, strict=True):
        returns, error = each.returns.numpy(), each.std_error.numpy()
        gap, row, k = gap_below(to_z(returns, front.objectives), front.z)
        other = front.policies[row].report_std_error[k]
        points.append(
            SliderPoint(
                strength=strength,
                returns=returns,
                std_error=error,
                gap=gap,
                gap_std_error=math.hypot(error[k], other) / abs(spans[k]),
            )
        )
    corner = depth_of_corner(
        *(to_z(policy.report_returns, front.objectives) for policy in (first, second))
    )
    return Slider(first=first, second=second, points=tuple(points), allowed=TOLERANCE * corner)


def direction(first: Adapter, second: Adapter) -> Adapter:
    """The adapter of dW_2 - dW_1; its rank is the sum of theirs, or theirs where they share A."""
    return Adapter.blend([(second, 1.0), (first, -1.0)])


def write_slider(folder: Path, front: Front, slider: Slider, *, is_kohya: bool) -> list[Path]:
    """Write where a slider starts, its direction, and a README; the two adapters' files.

    Raises:
        UserError: if an adapter is missing or damaged, or the folder cannot be written to.
    """
    start, end = Adapter.read(slider.first.file), Adapter.read(slider.second.file)
    names = {"start": start, "direction": direction(start, end)}
    schedule = front.model.schedule if front.model else {}
    try:
        if is_kohya:
            run = front.path.resolve().name
            files = [
                adapter.save_kohya(
                    folder / f"{run}_{name}.safetensors",
                    prediction_type=schedule.get("prediction_type", ""),
                    zero_snr=schedule.get("rescale_betas_zero_snr", False),
                )
                for name, adapter in names.items()
            ]
        else:
            files = [adapter.save(folder / name) for name, adapter in names.items()]
        places = [file.relative_to(folder).as_posix() for file in files]
        text = _README.format(
            first=slider.first.id,
            second=slider.second.id,
            start=places[0],
            direction=places[1],
            table=markdown_table(*slider.table(front)),
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as problem:
        raise FrontError(f"{folder} could not be written: {problem}") from problem
    return files


_README = """# A slider from {first} to {second}

Load both files. `{start}` stays at strength 1: it is the policy {first}.
The strength of `{direction}` is the slider: 0 draws as {first}, 1 as {second},
and what lies between is a blend of the two. A slider node of ComfyUI, or `<lora:...:0.5>` in
A1111, sets it. The direction without the start was not measured.

Measured on the report set, ± 1 standard error. The last column says how much a place lacks, in
every objective, before no policy of the front is better in all of them (0 is the run's reference
point, 1 its ideal).

{table}
"""
