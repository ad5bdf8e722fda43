"""How much of a run is the model's work, and how much is everything around it."""

from __future__ import annotations

import time


class Stopwatch:
    """Wall time since it was made, in work and the rest; work is what runs inside `with`.

    >>> watch = Stopwatch()
    >>> with watch:
    ...     pass
    >>> 0 <= watch.overhead_fraction <= 1
    True
    """

    def __init__(self) -> None:
        self._made = self._entered = time.perf_counter()
        self._work = 0.0

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._work += time.perf_counter() - self._entered

    @property
    def overhead_fraction(self) -> float:
        """Share of the time so far that was no work."""
        elapsed = time.perf_counter() - self._made
        return 1 - self._work / elapsed if elapsed > 0 else 0.0
