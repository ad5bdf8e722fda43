"""The progress of a run as a person sees it: bars on a terminal, lines in a log.

A log is whatever is not a terminal. There the bars vanish; a line says where the run stands
whenever none was printed for a while.
"""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING

from diffusers.utils import logging as diffusers_logging
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from config.settings.terminal import counted
from run.time_left import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from morl.types import Generation

_WIDTH = 79  # columns of a bar, at most
_QUIET = 15.0  # seconds without a line after which a log gets one
_REFRESH = 1.0  # seconds between two looks at the time left
_FORMAT = "{desc:<22}|{bar}| {n_fmt}/{total_fmt}{postfix}"


def named_bar(name: str, total: int, position: int = 0, *, is_shown: bool = True) -> tqdm[None]:
    """A bar on a terminal: its name, how far it is, within 80 columns; nothing elsewhere."""
    return tqdm(
        desc=name,
        total=total,
        position=position,
        leave=False,
        disable=None if is_shown else True,  # None: shown on a terminal only
        bar_format=_FORMAT,
        ncols=min(_WIDTH, shutil.get_terminal_size().columns - 1),
    )


class Progress:
    """Three bars: generations, iterations, and the steps of the present work.

    Args:
        num_generations: length of the outer bar.
        is_shown: False in all processes but the first.
    """

    def __init__(self, num_generations: int, is_shown: bool = True) -> None:
        self.time_left: Callable[[], float | None] = lambda: None
        self._num_generations = num_generations
        self._is_shown = is_shown
        self._generation_started = self._last_line = self._estimated = time.monotonic()
        self._where, self._name = "", "loading"
        self._done = self._total = 0  # steps of the present work
        self._outer = named_bar("generations", num_generations, 0, is_shown=is_shown)
        self._middle = named_bar("iterations", 0, 1, is_shown=is_shown)
        self._inner = named_bar("loading", 0, 2, is_shown=is_shown)
        self._closed = threading.Event()
        if is_shown and not sys.stderr.isatty():
            threading.Thread(target=self._keep_log_alive, name="progress", daemon=True).start()

    @property
    def fraction(self) -> float:
        """The part of the present work that is done."""
        return self._done / self._total if self._total else 0.0

    def generation(self, generation: Generation) -> None:
        """Show that a generation begins."""
        self._where = f"in generation {generation.index + 1}, "
        self._outer.n = generation.index
        self._outer.refresh()
        self._middle.reset(generation.num_iterations)
        self._generation_started = time.monotonic()

    def finished(self, generation: Generation, metrics: Mapping[str, float]) -> None:
        """Print the line of a finished generation.

        Args:
            generation: the one that is over.
            metrics: of the search.
        """
        seconds = time.monotonic() - self._generation_started
        volume = f"{metrics['morl/hypervolume']:.3f}"
        found = f"best return {volume} [z]"
        if "morl/sparsity" in metrics:  # of two objectives and more
            num = int(metrics["morl/archive_size"])
            found = f"{counted(num, 'policy', 'policies')} on the front, hypervolume {volume}"
        self.say(
            f"generation {generation.index + 1} of {self._num_generations} in {seconds:.0f} s: "
            f"{found}{self._left()}"
        )

    def iteration(self) -> None:
        """Show one more iteration done."""
        self._middle.update()

    def steps(self, name: str, total: int) -> Callable[[], object]:
        """Start the inner bar again; call the result after every step."""
        self._name, self._done, self._total = name, 0, total
        self._inner.set_description(name)
        self._inner.reset(total)

        def advance() -> None:
            self._done += 1
            self._inner.update()
            if not self._outer.disable and time.monotonic() - self._estimated > _REFRESH:
                self._estimated = time.monotonic()
                self._outer.set_postfix_str(self._left().lstrip(", "))

        return advance

    def stage(self, name: str) -> None:
        """Show that something beside the generations begins."""
        self._where = f"{name}, "
        self._outer.n = self._num_generations
        self._outer.set_description(name)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        if not self._is_shown:
            return
        self._last_line = time.monotonic()
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Clear the bars."""
        self._closed.set()
        for bar in (self._inner, self._middle, self._outer):
            bar.close()

    def _left(self) -> str:
        left = self.time_left()
        return "" if left is None else f", about {shown(left)} left"

    def _keep_log_alive(self) -> None:
        """Say where the run stands whenever nothing was said for a while; in a thread."""
        while not self._closed.wait(_REFRESH):
            if time.monotonic() - self._last_line >= _QUIET:
                part = f" {self.fraction:.0%}" if self._total else ""
                self.say(f"  {self._where}{self._name}{part}{self._left()}")


def route_logs(is_first: bool = True) -> None:
    """Send this project's log records above the bars, and keep the libraries quiet.

    Args:
        is_first: False in all processes but the first, which are silent unless they fail.
    """
    level = logging.INFO if is_first else logging.ERROR
    logging.basicConfig(level=level, handlers=[ProgressHandler()], force=True)
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


class ProgressHandler(logging.Handler):
    """Sends log records above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        tqdm.write(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)
