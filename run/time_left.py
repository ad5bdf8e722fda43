"""How long a run still takes: the time of its parts so far, applied to the work that is left."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddpo.cost.plan import Plan
    from ddpo.cost.stopwatch import Stopwatch
    from run.records import Costs

MOST_BLENDS = 3  # between two neighbours
_KINDS = ("sampling", "updating", "evaluating")
_BACKWARD = 3.0  # a UNet row with gradient, in rows without: a usual ratio, until it is measured
_FINAL_WRITES = 2.0  # page, plots and pictures of the end, in the rest of one generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Where a run stands.

    Attributes:
        generations: number of finished ones.
        finalists: policies to measure on the report set if the run ended now.
        fraction: how much of the work that runs now, such as one rollout, is done.
    """

    generations: int
    finalists: int
    fraction: float = 0.0


class TimeLeft:
    """Estimates the seconds that a run still takes, its report set and last files included.

    Args:
        plan: of the whole run.
        num_generations: of the whole run.
        done: generations that are done already, where a run is resumed.
        costs: so far.
        work: measures this process.
        blends_fraction: of the run's UNet rows, for blends at its end.
    """

    def __init__(
        self,
        plan: Plan,
        num_generations: int,
        done: int,
        costs: Costs,
        work: Stopwatch,
        blends_fraction: float = 0.0,
    ) -> None:
        self._blends_fraction = blends_fraction
        self._plan = plan
        self._num_generations = num_generations
        self._resumed_at = done
        self._work = work
        self._images_before = {kind: work.images(kind) for kind in _KINDS}
        self._rest_before = work.rest
        self._train = plan.train_images - costs.train
        self._selection = plan.calibration_images + plan.selection_images - costs.selection

    def seconds(self, stand: Stand) -> float | None:
        """Seconds left; None before anything was measured."""
        rates = self._rates(stand.fraction)
        if rates is None:
            return None
        # Work that is left, in pictures of each kind.
        done = {
            kind: self._work.images(kind, stand.fraction) - before
            for kind, before in self._images_before.items()
        }
        policies = self._finalists(stand)
        per_policy = self._plan.report_images_per_policy
        ahead = {
            "sampling": self._train - done["sampling"],
            "updating": self._train - done["updating"],
            "evaluating": self._selection + policies * per_policy - done["evaluating"],
        }
        # Its time. Blends come last; pictures evaluated beyond the plan's are theirs.
        drawn = sum(rates[kind] * max(0.0, ahead[kind]) for kind in _KINDS)
        blends = per_policy * min(
            MOST_BLENDS * (policies - 1), affordable_blends(self._plan, self._blends_fraction)
        )
        drawn += rates["evaluating"] * max(0.0, blends + min(0.0, ahead["evaluating"]))
        return drawn + self._rest(stand)

    def _rates(self, fraction: float) -> dict[str, float] | None:
        """Seconds per picture of each kind of work; UNet rows estimate a kind not done yet."""
        plan = self._plan
        judged = self._work.seconds_per_image("evaluating", fraction)
        if judged is None:
            return None
        row = judged / plan.evaluation_rows_per_image
        expected = {
            "sampling": row * plan.sample_rows_per_image,
            "updating": row * (plan.base_rows_per_image + _BACKWARD * plan.train_rows_per_image),
            "evaluating": judged,
        }
        measured = {kind: self._work.seconds_per_image(kind, fraction) for kind in _KINDS}
        return {kind: measured[kind] or expected[kind] for kind in _KINDS}

    def _finalists(self, stand: Stand) -> float:
        """Policies to report: the front grows about as the root of the generations."""
        if not stand.generations:
            return float(self._plan.report_policies)
        return stand.finalists * math.sqrt(max(1.0, self._num_generations / stand.generations))

    def _rest(self, stand: Stand) -> float:
        """Seconds of search, files and pages."""
        done = stand.generations - self._resumed_at
        if done <= 0:
            return 0.0
        per_generation = (self._work.rest - self._rest_before) / done
        return per_generation * (self._num_generations - stand.generations + _FINAL_WRITES)


def affordable_blends(plan: Plan, fraction: float, unet_rows: int = 0) -> int:
    """How many blends a run can measure on the report set within a fraction of its UNet rows.

    Rows, not seconds, decide: a run that is done again, or resumed, measures the same blends. Rows
    with gradient take longer than rows of blends, so the fraction of the time is smaller.

    Args:
        plan: of the run.
        fraction: of the rows.
        unet_rows: of the run; 0 for as many as the plan expects.
    """
    rows = unet_rows or plan.sample_rows + plan.train_rows
    per_blend = plan.report_images_per_policy * plan.evaluation_rows_per_image
    return int(fraction * rows / per_blend)


def shown(seconds: float | None) -> str:
    """A time as people say it.

    Example:
        >>> shown(9), shown(47), shown(200), shown(8000), shown(100000), shown(None)
        ('10 s', '50 s', '3 min', '2 h 13 min', '28 h', 'an unknown time')
    """
    if seconds is None:
        return "an unknown time"
    if seconds < 90:
        return f"{max(1, math.ceil(seconds / 10)) * 10} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 10 else f"{round(seconds / 3600)} h"
