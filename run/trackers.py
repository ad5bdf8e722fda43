"""Trackers that can never stop a run, nor hold it up.

They talk to the network, so they do it in a thread of their own: what fails, or does not answer
within `PATIENCE` seconds, is reported once and left out from then on.
"""

from __future__ import annotations

import importlib.util
import logging
import queue
import threading
from typing import TYPE_CHECKING, Any, Protocol

from config.settings.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_PLAIN = (int, float, str, bool)  # settings that tensorboard takes as they are

PATIENCE = 15.0  # seconds a tracker may take for one thing
BACKLOG = 10_000  # things that may wait for a slow tracker


def installed_trackers(names: Sequence[str]) -> list[str]:
    """Those of the trackers whose package is there; the others are reported."""
    installed = [name for name in names if importlib.util.find_spec(name) is not None]
    for name in sorted(set(names) - set(installed)):
        logger.warning("tracker %r is not installed (pip install %s); going on without", name, name)
    return installed


class Panel(Protocol):
    """Images and a table that know how to show themselves."""

    def send(self, tracker: Any, step: int) -> None:
        """Show them in one of accelerate's trackers, `step` training images after the start."""
        ...


class Trackers:
    """Sends metrics to accelerate's trackers, if any were asked for.

    Args:
        accelerator: made with `log_with`.
        names: the trackers asked for.
        run_name: shown by them.
        settings: sent along, flat.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        names: Sequence[str],
        run_name: str,
        settings: Mapping[str, Any],
    ) -> None:
        self._accelerator = accelerator
        self._is_on = bool(names)
        self._tasks: queue.Queue[tuple[str, Callable[[], object]] | None] = queue.Queue(BACKLOG)
        self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)
        if self._is_on:
            self._thread.start()
            values = {k: v if isinstance(v, _PLAIN) else str(v) for k, v in settings.items()}

            def start() -> None:
                options = {"wandb": wandb_options(run_name)} if "wandb" in names else {}
                accelerator.init_trackers("mo-ddpo", values, init_kwargs=options)

            self._send("started", start)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send one set of metrics."""
        values = dict(metrics)
        self._send("written to", lambda: self._accelerator.log(values, step=step))

    def show(self, make: Callable[[Path], Panel], run: Path, step: int) -> None:
        """Send images and a table, which are made only if there is a tracker to see them.

        Args:
            make: a panel from the run directory.
            run: the run directory they are made from.
            step: training images sampled so far.
        """
        if not self._is_on:
            return
        try:
            panel = make(run)
        except (OSError, UserError) as error:
            logger.warning("no pictures for the trackers: %r", error)
            return

        def send() -> None:
            for tracker in self._accelerator.trackers:
                panel.send(tracker, step)

        self._send("written to", send)

    def close(self) -> None:
        """Finish the trackers; waits no longer than they may take."""
        self._send("closed", self._accelerator.end_training)
        if self._is_on:
            self._tasks.put(None)
            self._thread.join(2 * PATIENCE)

    def _send(self, what: str, task: Callable[[], object]) -> None:
        """Hand a task to the trackers' thread; `what` says what it was for if it fails."""
        if self._is_on:
            try:
                self._tasks.put_nowait((what, task))
            except queue.Full:
                self._give_up(what, f"{BACKLOG} things wait for it")

    def _work(self) -> None:
        """Do one task after another; runs in the thread."""
        while self._is_on and (item := self._tasks.get()) is not None:
            what, task = item
            problem = _problem_within(PATIENCE, task)
            if problem is not None:
                self._give_up(what, problem)

    def _give_up(self, what: str, problem: str) -> None:
        self._is_on = False
        logger.warning(
            "a tracker could not be %s (%s); going on without, metrics.jsonl has everything",
            what,
            problem,
        )


def _problem_within(seconds: float, task: Callable[[], object]) -> str | None:
    """Run a task: None if all went well, or what went wrong. One that hangs is left behind."""
    problems: list[str] = []

    def run() -> None:
        try:
            task()
        except BaseException as error:  # whatever a tracker does, training goes on
            problems.append(str(error) or repr(error))

    thread = threading.Thread(target=run, name="tracker", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return f"no answer within {seconds:g} s"
    return problems[0] if problems else None


def wandb_options(run_name: str) -> dict[str, Any]:
    """The run's name, and an end to waiting for a server or for somebody to type a key."""
    import wandb  # noqa: PLC0415 - slow, and not everybody has it

    limit = int(PATIENCE)
    return {"name": run_name, "settings": wandb.Settings(init_timeout=limit, login_timeout=limit)}
