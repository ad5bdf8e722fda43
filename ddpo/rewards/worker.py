"""Calls in their own threads, which may hang without hanging the program.

`concurrent.futures` joins its threads when the program ends, so a call that never returns would
keep the program alive for ever. These threads are daemons, and a thread that hangs is left behind.
All others end before the interpreter does: a daemon inside torch can abort the process when Python
shuts down.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


class Call(Generic[T]):
    """A call of a function: waiting, running, or done.

    Attributes:
        started: `time.monotonic()` of its start; None before.
        seconds: duration, once it is done.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._done = threading.Event()
        self._value: T
        self._error: BaseException | None = None
        self.started: float | None = None
        self.seconds = 0.0
        self.is_abandoned = False

    @property
    def is_done(self) -> bool:
        """Whether the function has returned or raised."""
        return self._done.is_set()

    def run(self) -> None:
        """Call the function and keep its result or exception."""
        self.started = time.monotonic()
        try:
            self._value = self._function()
        except BaseException as error:  # raised again by `result`
            self._error = error
        self.seconds = time.monotonic() - self.started
        self._done.set()

    def result(self, timeout_seconds: float) -> T:
        """The function's result.

        Args:
            timeout_seconds: counted from the start of the call, or from now if it has not started.

        Raises:
            TimeoutError: if the call is still running then.
            BaseException: whatever the function raised.
        """
        started = self.started if self.started is not None else time.monotonic()
        if not self._done.wait(max(0.0, started + timeout_seconds - time.monotonic())):
            raise TimeoutError(f"no answer within {timeout_seconds:g} s")
        if self._error is not None:
            raise self._error
        return self._value


class Worker:
    """Runs calls in order, one after another, in a daemon thread.

    Args:
        name: of the thread.
        patience_seconds: how long `close` waits for a running call.
    """

    def __init__(self, name: str, patience_seconds: float = 5.0) -> None:
        self._name = name
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._calls: queue.SimpleQueue[Call[object] | None] = queue.SimpleQueue()
        self._start()
        _workers.add(self)

    def submit(self, function: Callable[[], T]) -> Call[T]:
        """Queue a call."""
        call = Call(function)
        self._calls.put(call)  # type: ignore[arg-type]
        return call

    def abandon(self, call: Call[T]) -> None:
        """Leave behind the thread in which `call` hangs; a new thread takes the next call."""
        with self._lock:
            if not call.is_done:  # otherwise it has returned after all, and its thread continues
                call.is_abandoned = True
                self._start()

    def close(self) -> None:
        """Drop queued calls and wait for the thread to end, but not for a call that hangs."""
        while True:
            try:
                self._calls.get_nowait()
            except queue.Empty:
                break
        self._calls.put(None)
        self._thread.join(self._patience_seconds)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()
            with self._lock:
                if call.is_abandoned:
                    return


@atexit.register
def _close_all() -> None:
    """End the threads of workers that nobody has closed."""
    for worker in list(_workers):
        worker.close()
