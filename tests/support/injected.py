"""Faults that a run of the program can be started with, by name."""

from __future__ import annotations

import enum
import importlib
import os
import pkgutil
import resource
import shutil
import signal
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from run.checkpoint import Checkpoint
    from run.session import Session


def be_on_windows() -> None:
    """Remove the names and habits of POSIX, then import every module of the project again."""
    for module in ("fcntl", "resource", "termios", "pwd", "grp"):
        sys.modules[module] = None
    for where, names in {
        os: ("EX_TEMPFAIL", "O_DIRECTORY", "sched_getaffinity", "fork", "geteuid", "getuid"),
        signal: ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM", "SIGHUP", "alarm"),
    }.items():
        for name in names:
            delattr(where, name)
    windows = [each for each in signal.Signals if each.name in {"SIGTERM", "SIGINT"}]
    signal.Signals = enum.IntEnum("Signals", {each.name: each.value for each in windows})
    original = os.open

    def open_no_folder(path: object, flags: int, *arguments: object, **options: object) -> int:
        if Path(os.fsdecode(path)).is_dir() and not options:
            raise PermissionError(13, "Permission denied", path)
        return original(path, flags, *arguments, **options)

    os.open = open_no_folder
    packages = ("config", "ddpo", "morl", "run", "front")
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        del sys.modules[name]
    for package in packages:
        for module in pkgutil.walk_packages([package], f"{package}."):
            importlib.import_module(module.name)
    importlib.import_module("mo_front")


def never_reach_a_safe_point() -> None:
    """Let the first picture take for ever."""
    from ddpo.agents.slots import Agents

    def hang(*args: object) -> None:
        os.write(2, b"stuck\n")
        while True:
            time.sleep(0.01)

    Agents.predict = hang


def signal_myself_at(words: str, count: int) -> None:
    """Send SIGTERM when the bar called `words` starts for the `count`-th time, from 0."""
    from run.progress import Progress

    original, seen = Progress.steps, [0]

    def steps(self: Progress, name: str, total: int) -> object:
        if name == words:
            seen[0] += 1
            if seen[0] == count + 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return original(self, name, total)

    Progress.steps = steps


def kill_at(operation: str, pattern: str) -> None:
    """Send SIGKILL before the first file operation on a path that matches a shell pattern."""
    original = getattr(Path, operation)

    def deadly(self: Path, *arguments: object, **options: object) -> object:
        is_read = operation == "open" and not arguments
        if fnmatch(str(self), pattern) and not is_read:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments, **options)

    setattr(Path, operation, deadly)


def kill_after(operations: int, folder: str) -> None:
    """Send SIGKILL after this many file operations in a folder, just before the next one."""

    def die(number: int) -> None:
        if number == operations:
            os.kill(os.getpid(), signal.SIGKILL)

    _before_each_change(folder, die)


def keep_every_state(folder: str, copies: str) -> None:
    """Copy a folder before each file operation in it: all states that a SIGKILL could leave.

    Args:
        folder: to copy.
        copies: prefix of the copies' names; a number follows.
    """

    def keep(number: int) -> None:
        if Path(folder).is_dir():
            shutil.copytree(folder, f"{copies}{number:04d}")

    _before_each_change(folder, keep)


_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
_WRITING = os.O_WRONLY | os.O_RDWR


def _before_each_change(folder: str, act: Callable[[int], None]) -> None:
    """Call a function before each change of files in a folder, with the number of changes so far.

    Writing to an open file counts as part of opening it.
    """
    count, is_acting = 0, False

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count, is_acting
        is_change = event in _CHANGES or (event == "open" and arguments[2] & _WRITING)
        if is_acting or not is_change:
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | Path) else ""
        # shutil.rmtree names files relative to a folder that it has opened
        if path.startswith(folder) or (event in _CHANGES and not path.startswith("/")):
            is_acting = True
            act(count)
            count, is_acting = count + 1, False

    sys.addaudithook(hook)


def limit_file_size(kilobytes: int) -> None:
    """Limit the size of files: to larger ones this is a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, resource.RLIM_INFINITY))


def fill_disk_during(generations: list[int]) -> None:
    """Let writing any file of a checkpoint fail in these generations, after the first byte."""
    from run.checkpoint import CheckpointStore

    original = CheckpointStore.commit

    def commit(self: CheckpointStore, checkpoint: Checkpoint) -> None:
        limit = 1 if checkpoint.generation in generations else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            original(self, checkpoint)
        finally:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )

    CheckpointStore.commit = commit


def run_out_of_memory_in(generation: int) -> None:
    """Ask for a tensor that no machine can hold, so that torch raises its own error."""
    import torch

    from ddpo.trainer import Trainer

    original = Trainer.draw

    def draw(self: Trainer, index: int, *arguments: object) -> object:
        if index == generation:
            torch.empty(1 << 50)
        return original(self, index, *arguments)

    Trainer.draw = draw


def impatient_with_trackers() -> None:
    """Wait one second for trackers instead of fifteen."""
    from run import trackers

    trackers.PATIENCE = 1.0


def fill_disk_while_publishing() -> None:
    """Let writing any file of the published front fail."""
    from front.publish import FrontPublisher

    original = FrontPublisher.front

    def front(self: FrontPublisher, run: Session) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        try:
            original(self, run)
        finally:  # the output goes to a file too
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )

    FrontPublisher.front = front
