"""Trackers that can never stop a run, nor hold it up.

They use the network, in a thread of their own. A tracker that fails, or does not answer within
`PATIENCE` seconds, is reported once and left out from then on.

A resumed run resumes in its trackers too: `trackers.json` in the run directory has its ids.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import queue
import threading
import uuid
from typing import TYPE_CHECKING, Any, Protocol

from config.settings.errors import UserError
from ddpo.files import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_PLAIN = (int, float, str, bool)  # settings that tensorboard takes as they are

PATIENCE = 15.0  # seconds a tracker may take for one call
BACKLOG = 10_000  # calls that may wait for a slow tracker
_BEGUN = "trackers.json"


def installed_trackers(names: Sequence[str]) -> list[str]:
    """The trackers whose package is installed; the others are reported."""
    installed = [name for name in names if importlib.util.find_spec(name) is not None]
    for name in sorted(set(names) - set(installed)):
        logger.warning(
            "tracker %r is not installed (pip install %s); continuing without it", name, name
        )
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
        run: the run directory.
        settings: sent along, flat, by a tracker that begins.
        resumed_at: training images of the checkpoint that the run resumes from; None if it is new.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        names: Sequence[str],
        run: Path,
        settings: Mapping[str, Any],
        resumed_at: int | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._is_on = bool(names)
        self._tasks: queue.Queue[tuple[str, Callable[[], object]] | None] = queue.Queue(BACKLOG)
        self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)
        if self._is_on:
            self._thread.start()
            values = {k: v if isinstance(v, _PLAIN) else str(v) for k, v in settings.items()}

            def start() -> None:
                ids, are_new = _ids(run, names, is_new=resumed_at is None)
                options = {name: _OPTIONS[name](run.name, ids[name], resumed_at) for name in names}
                content = values if are_new else None  # tensorboard would show it as another run
                accelerator.init_trackers("mo-ddpo", content, init_kwargs=options)

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
        """Finish the trackers; waits at most as long as they may take."""
        self._send("closed", self._accelerator.end_training)
        if self._is_on:
            self._tasks.put(None)
            self._thread.join(2 * PATIENCE)

    def _send(self, what: str, task: Callable[[], object]) -> None:
        """Hand a task to the trackers' thread; if it fails, `what` names its purpose."""
        if self._is_on:
            try:
                self._tasks.put_nowait((what, task))
            except queue.Full:
                self._give_up(what, f"{BACKLOG} calls wait for it")

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
            "a tracker could not be %s (%s); continuing without it, metrics.jsonl has everything",
            what,
            problem,
        )


def _problem_within(seconds: float, task: Callable[[], object]) -> str | None:
    """Run a task: None if all went well, or what went wrong. One that hangs is left behind."""
    problems: list[str] = []

    def run() -> None:
        try:
            task()
        except BaseException as error:  # whatever a tracker does, training continues
            problems.append(str(error) or repr(error))

    thread = threading.Thread(target=run, name="tracker", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return f"no answer within {seconds:g} s"
    return problems[0] if problems else None


def _ids(run: Path, names: Sequence[str], *, is_new: bool) -> tuple[dict[str, str], bool]:
    """The id of the run in each tracker, and whether a tracker had none yet; kept for next time."""
    try:
        known = {} if is_new else json.loads((run / _BEGUN).read_text(encoding="utf-8"))["ids"]
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    ids = {name: known.get(name) or uuid.uuid4().hex for name in names}
    write_json(run / _BEGUN, {"format": 1, "ids": {**known, **ids}})
    return ids, not ids.keys() <= known.keys()


def wandb_options(run_name: str, identifier: str, resumed_at: int | None) -> dict[str, Any]:
    """The run's name and id, and limits to waiting for a server or for a typed key.

    wandb ignores values of steps that it already has, so repeated generations change nothing.
    """
    import wandb  # noqa: PLC0415 - slow, and not everybody has it

    limit = int(PATIENCE)
    return {
        "name": run_name,
        "id": identifier,
        "resume": "never" if resumed_at is None else "allow",
        "settings": wandb.Settings(init_timeout=limit, login_timeout=limit),
    }


def tensorboard_options(run_name: str, identifier: str, resumed_at: int | None) -> dict[str, Any]:  # noqa: ARG001
    """Remove what came after the checkpoint: it is done again, and shown once.

    tensorboard knows a run by its folder, which is the run's own.
    """
    return {} if resumed_at is None else {"purge_step": resumed_at + 1}


_OPTIONS = {"wandb": wandb_options, "tensorboard": tensorboard_options}
