"""Nested progress bars and log lines that do not tear them."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

from diffusers.utils import logging as diffusers_logging
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from morl.types import Generation


class Progress:
    """Three bars: generations, iterations, and the steps of what is going on now.

    They show on a terminal and vanish elsewhere; `say` always prints.

    Args:
        num_generations: length of the outer bar.
        is_shown: False in all processes but the first.
    """

    def __init__(self, num_generations: int, is_shown: bool = True) -> None:
        self._num_generations = num_generations
        self._is_shown = is_shown
        self._generation_started = time.monotonic()
        self._outer = self._bar(0, "generation", num_generations)
        self._middle = self._bar(1, "iteration", 0)
        self._inner = self._bar(2, "step", 0)

    def _bar(self, position: int, unit: str, total: int) -> tqdm[None]:
        disable = None if self._is_shown else True  # None: shown on a terminal only
        return tqdm(position=position, unit=unit, total=total, leave=False, disable=disable)

    def generation(self, generation: Generation) -> None:
        """Show that a generation begins."""
        self._outer.n = generation.index
        self._outer.set_description(generation.stage)
        self._middle.reset(generation.num_iterations)
        self._generation_started = time.monotonic()

    def finished(
        self, generation: Generation, metrics: Mapping[str, float], num_images: int
    ) -> None:
        """Print the line of a finished generation.

        Args:
            generation: that is over.
            metrics: of the search.
            num_images: sampled for training so far.
        """
        seconds = time.monotonic() - self._generation_started
        left = (self._num_generations - generation.index - 1) * seconds
        errors = [value for name, value in metrics.items() if "prediction_error" in name]
        predicted = f"  prediction error {max(errors):.3f}" if errors else ""
        volume = f"{metrics['morl/hypervolume']:.4f}"
        front = f"best return {volume} [z-units]"
        if "morl/sparsity" in metrics:  # of two objectives and more
            front = f"hypervolume {volume}  archive {int(metrics['morl/archive_size'])}"
            front += f"  sparsity {metrics['morl/sparsity']:.4f}"
        self.say(
            f"generation {generation.index:2d} {generation.stage:12s}"
            f"  {front}{predicted}"
            f"  images {num_images}  {seconds:.0f} s, about {left:.0f} s of training left"
        )

    def iteration(self) -> None:
        """Show one more iteration done."""
        self._middle.update()

    def steps(self, name: str, total: int) -> Callable[[], object]:
        """Start the inner bar anew; call the result after every step."""
        self._inner.set_description(name)
        self._inner.reset(total)
        update: Callable[[], object] = self._inner.update
        return update

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        if not self._is_shown:
            return
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Clear the bars."""
        for bar in (self._inner, self._middle, self._outer):
            bar.close()


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
