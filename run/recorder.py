"""The costs and results of a run, counted and reported: metrics, curve, bars, trackers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from run.records import Costs, CurvePoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from morl.types import Generation
    from run.directory import RunDir
    from run.progress import Progress
    from run.trackers import Panel, Trackers


class Recorder:
    """Keeps the accounts of a run.

    Every process counts; only the first one writes and reports.

    Args:
        directory: gets `metrics.jsonl`.
        progress: bars and lines on the terminal.
        trackers: get the same metrics.
        costs: so far.
        curve: so far.
    """

    def __init__(
        self,
        directory: RunDir,
        progress: Progress,
        trackers: Trackers,
        costs: Costs | None = None,
        curve: Sequence[CurvePoint] = (),
    ) -> None:
        self._directory = directory
        self._progress = progress
        self._trackers = trackers
        self.costs = costs or Costs()
        self.curve = list(curve)

    def spend(self, costs: Costs) -> None:
        """Add to the costs."""
        self.costs += costs

    def begin(self, generation: Generation) -> None:
        """Show that a generation begins."""
        self._progress.generation(generation)

    def iteration(self, metrics: Mapping[str, float]) -> None:
        """Log one iteration and what was spent so far."""
        self._progress.iteration()
        spent = {"cost/images": self.costs.train, "cost/unet_rows": self.costs.unet_rows}
        left = self.seconds_left
        clock = {} if left is None else {"cost/seconds_left": left}
        self.log({**metrics, **spent, **clock})

    def archive(self, metrics: Mapping[str, float]) -> None:
        """Add the archive's hypervolume, one of the search's metrics, to the curve."""
        self.curve.append(CurvePoint(self.costs.train, metrics["morl/hypervolume"]))

    def finished(self, generation: Generation, metrics: Mapping[str, float]) -> None:
        """Print the line of a finished generation, from the search's metrics."""
        self._progress.finished(generation, metrics)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Write metrics to `metrics.jsonl` and to the trackers."""
        self._directory.log(self.costs.train, metrics)
        self._trackers.log(metrics, self.costs.train)

    def show(self, make: Callable[[Path], Panel]) -> None:
        """Show trackers the panel that `make` makes from the run directory, if there are any."""
        self._trackers.show(make, self._directory.path, self.costs.train)

    def watch(self, time_left: Callable[[float], float | None]) -> None:
        """Show how long a run still takes.

        Args:
            time_left: gives seconds, from how much of the part that runs now is done.
        """
        self._progress.time_left = lambda: time_left(self._progress.fraction)

    @property
    def seconds_left(self) -> float | None:
        """Until the run is done, its report included; None before anything was measured."""
        return self._progress.time_left()

    def announce(self, name: str) -> None:
        """Show work outside the generations: the report set, blends, files."""
        self._progress.stage(name)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._progress.say(line)
