"""Nested progress bars and log lines that do not tear them."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable


class Progress:
    """Three bars: generations, iterations, and the steps of what is going on now.

    They show on a terminal and vanish elsewhere; `say` always prints.

    Args:
        num_generations: length of the outer bar.
    """

    def __init__(self, num_generations: int) -> None:
        self._outer = self._bar(0, "generation", num_generations)
        self._middle = self._bar(1, "iteration", 0)
        self._inner = self._bar(2, "step", 0)

    @staticmethod
    def _bar(position: int, unit: str, total: int) -> tqdm[None]:
        return tqdm(position=position, unit=unit, total=total, leave=False, disable=None)

    def generation(self, done: int, name: str, num_iterations: int) -> None:
        """Show that `done` generations are over and another begins."""
        self._outer.n = done
        self._outer.set_description(name)
        self._middle.reset(num_iterations)

    def iteration(self) -> None:
        """Show one more iteration done."""
        self._middle.update()

    def steps(self, name: str, total: int) -> Callable[[], object]:
        """Start the inner bar anew; call the result after every step."""
        self._inner.set_description(name)
        self._inner.reset(total)
        update: Callable[[], object] = self._inner.update
        return update

    @staticmethod
    def say(line: str) -> None:
        """Print a line above the bars."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Clear the bars."""
        for bar in (self._inner, self._middle, self._outer):
            bar.close()


class ProgressHandler(logging.Handler):
    """Sends log records above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        tqdm.write(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)
