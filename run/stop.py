"""An orderly end when asked for one: SIGTERM, SLURM's SIGUSR1, Ctrl-C."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from config.settings.errors import StoppedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")  # Windows has no SIGUSR1
SIGNALS = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)


class Stop:
    """Remembers the first signal until `check` is called; a second one ends the process."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Handle the signals inside the block."""
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Stop here if a signal has come.

        Raises:
            StoppedError: naming the signal.
        """
        if self.signal_name is not None:
            raise StoppedError(f"stopped by {self.signal_name}")

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        name = signal.Signals(number).name
        if self.signal_name is not None:
            os.write(2, f"\n{name}: stopping immediately\n".encode())
            os._exit(128 + number)
        self.signal_name = name
        # print is not safe in a handler: it may have interrupted another print
        words = "stopping after this optimiser step; a second signal stops immediately"
        os.write(2, f"\n{name}: {words}\n".encode())
