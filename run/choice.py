"""The run directory that a start of the program means: of a new run, or of one to resume.

Nothing heavy is imported here: a finished run is reported immediately.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from config.settings.errors import ConfigError, UserError
from config.settings.resume import (
    AUTO,
    changed_settings,
    has_checkpoint,
    run_meant_by,
    settings_in,
)
from config.settings.runs import runs_beside
from ddpo.files import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from config.base import Settings

_FINISHED = "finished.json"
_LENGTH = "evolutionary_generations"
_RESULTS = ("front.json", _FINISHED, "adapters")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunChoice:
    """A run directory, and what to do in it.

    Attributes:
        path: the directory.
        is_new: whether it holds nothing yet that could be resumed.
        is_finished: whether all its generations are done and its front is published.
        is_named: whether a user chose its name. A name made from the time must not be taken yet.
    """

    path: Path
    is_new: bool
    is_finished: bool = False
    is_named: bool = True


def choose_run(settings: Settings) -> RunChoice:
    """The run directory that the settings mean.

    `resume_from` names it, or is `auto`: then it is the run called `run_name`. Without that name
    it is the run of `logdir` that was worked on last. Unfinished runs come first; finished runs
    count only if they have these settings. Where `auto` finds no run to resume, it begins one. So
    one command can start a job again and again.

    Raises:
        UserError: if there is nothing to continue, something would be overwritten, or a name leads
            out of the log directory; `ConfigError` if a finished run was made with other settings.
    """
    logdir = Path(settings.logdir)
    if settings.resume_from == AUTO:
        return _choose_auto(logdir, settings)
    if settings.resume_from:
        path = run_meant_by(settings.resume_from)
        if not has_checkpoint(path):
            raise UserError(
                f"resume_from={path} is not a run directory that can be continued: it has no "
                f"checkpoint{runs_beside(path)}"
            )
        return _existing(path, settings)
    if not settings.run_name:
        return _unnamed(logdir)
    path = _inside(logdir, settings.run_name)
    if has_checkpoint(path):
        raise UserError(
            f"{path} holds a run already; choose another run_name, or continue it with "
            f"--config.resume_from={path}"
        )
    return _new(path)


def mark_finished(path: Path, num_generations: int) -> None:
    """Note that a run has done that many generations and published its front."""
    write_json(path / _FINISHED, {"format": 1, "num_generations": num_generations})


def _choose_auto(logdir: Path, settings: Settings) -> RunChoice:
    if settings.run_name:
        path = _inside(logdir, settings.run_name)
        return _existing(path, settings) if has_checkpoint(path) else _new(path)
    choices = []
    for run in sorted(_runs_in(logdir), key=_last_worked_on, reverse=True):
        with contextlib.suppress(ConfigError):  # finished with other settings
            choices.append(_existing(run, settings))
    unfinished = [choice for choice in choices if not choice.is_finished]
    return (unfinished or choices or [_unnamed(logdir)])[0]


def _unnamed(logdir: Path) -> RunChoice:
    """A run to begin, named by the time, and by a number as well if that name is taken."""
    now = time.strftime("%Y-%m-%d_%H-%M-%S")
    path, number = logdir / now, 1
    while os.path.lexists(path):  # ends: a folder holds finitely many
        number += 1
        path = logdir / f"{now}_{number}"
    return RunChoice(path=path, is_new=True, is_named=False)


def _new(path: Path) -> RunChoice:
    """A run to begin, if no earlier run left files that could be taken for its results.

    Raises:
        UserError: if one did.
    """
    left = [name for name in _RESULTS if (path / name).exists()]
    if left:
        raise UserError(
            f"{path} holds {', '.join(left)} of another run, without a checkpoint to resume from; "
            "choose another run_name, or remove that folder"
        )
    return RunChoice(path=path, is_new=True)


def _existing(path: Path, settings: Settings) -> RunChoice:
    """A run to resume, or one that has done all that these settings ask for.

    Raises:
        ConfigError: if it is finished and was made with other settings.
    """
    search = settings.evolution
    num_done = _num_generations_done(path)
    made_with = settings_in(path) if num_done >= 0 else None
    if made_with is not None:
        asked = min(search.evolutionary_generations, made_with["evolution"][_LENGTH])
        made_with["evolution"][_LENGTH] = asked
        changed_settings(made_with, settings)
    return RunChoice(path=path, is_new=False, is_finished=num_done >= search.num_generations)


def _num_generations_done(path: Path) -> int:
    """Generations of a finished run; -1 if it is not finished, or its front is gone."""
    try:
        record = json.loads((path / _FINISHED).read_text(encoding="utf-8"))
        return int(record["num_generations"]) if (path / "front.json").is_file() else -1
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _runs_in(logdir: Path) -> Iterator[Path]:
    if logdir.is_dir():
        yield from (
            path for path in logdir.iterdir() if not path.is_symlink() and has_checkpoint(path)
        )


def _last_worked_on(path: Path) -> int:
    """Time of the last change among the checkpoints, in nanoseconds."""
    return (path / "checkpoints").stat().st_mtime_ns


def _inside(logdir: Path, name: str) -> Path:
    """`logdir/name`, unless a symbolic link leads elsewhere.

    Raises:
        UserError: if it does.
    """
    path = logdir / name
    if path.is_symlink() and path.resolve().parent != logdir.resolve():
        raise UserError(
            f"run_name={name!r} is a symbolic link out of logdir={logdir}, to {path.resolve()}; "
            "choose another name, or give that folder's parent as logdir"
        )
    return path
