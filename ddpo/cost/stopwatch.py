"""How long a run's parts take: each kind of work, per picture, and everything around it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMORY = 0.8  # weight that a measured part keeps after the next one of its kind


@dataclass(slots=True)
class Work:
    """One kind of work so far.

    Attributes:
        images: number of images it was done for.
        recent_images: the same, but older parts count less, as in `recent_seconds`.
        recent_seconds: the time that these took.
    """

    images: int = 0
    recent_images: float = 0.0
    recent_seconds: float = 0.0


class Stopwatch:
    """Wall time since it was made, split into parts of work and the rest.

    >>> watch = Stopwatch()
    >>> with watch.part("sampling", num_images=8):
    ...     pass
    >>> watch.images("sampling"), 0 <= watch.overhead_fraction <= 1
    (8, True)
    """

    def __init__(self) -> None:
        self._made = time.perf_counter()
        self._work = 0.0
        self._kinds: dict[str, Work] = {}
        self._running: tuple[str, int, float] | None = None  # kind, images, when it began

    @contextmanager
    def part(self, kind: str, num_images: int) -> Iterator[None]:
        """Count what runs inside the block as work of a kind, for that many pictures."""
        began = time.perf_counter()
        self._running = (kind, num_images, began)
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._running = None
            self._work += seconds
            work = self._kinds.setdefault(kind, Work())
            work.images += num_images
            work.recent_images = _MEMORY * work.recent_images + num_images
            work.recent_seconds = _MEMORY * work.recent_seconds + seconds

    def images(self, kind: str, fraction: float = 0.0) -> float:
        """Pictures that a kind of work was done for.

        Args:
            kind: of work.
            fraction: of the part that runs now, if it is of this kind, that is done.
        """
        done = self._kinds[kind].images if kind in self._kinds else 0
        return done + self._in_part(kind, fraction)[0]

    def seconds_per_image(self, kind: str, fraction: float = 0.0) -> float | None:
        """Seconds per picture in a kind of work, by its last parts; None before the first.

        Args:
            kind: of work.
            fraction: of the part that runs now, if it is of this kind, that is done.
        """
        work = self._kinds.get(kind, Work())
        images, seconds = self._in_part(kind, fraction)
        images += work.recent_images
        return (work.recent_seconds + seconds) / images if images else None

    def _in_part(self, kind: str, fraction: float) -> tuple[float, float]:
        """Pictures and seconds so far of the part that runs now; 0 if it is of another kind."""
        if self._running is None or self._running[0] != kind or fraction <= 0:
            return 0.0, 0.0
        _, num_images, began = self._running
        return fraction * num_images, time.perf_counter() - began

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._made

    @property
    def rest(self) -> float:
        """Seconds so far that were no work."""
        now = time.perf_counter()
        running = now - self._running[2] if self._running else 0.0
        return now - self._made - self._work - running

    @property
    def overhead_fraction(self) -> float:
        """Share of the time so far that was no work."""
        rest = self.rest
        return rest / elapsed if (elapsed := self.elapsed) > 0 else 0.0
