"""The real program in processes that can be killed, each started in a fraction of a second.

Each is `mo_train.py` with its own command line.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.forks import FORK
from tests.support.worlds import leave_plots_blank

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess


@dataclass
class Process:
    """One run of the program."""

    process: BaseProcess
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self) -> int:
        """The exit code; negative if a signal ended it, as in `subprocess`."""
        self.process.join()
        return self.process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, words: str, timeout: float = 60) -> None:
        """Wait until the program has printed something."""
        end = time.monotonic() + timeout
        while words not in self.output:
            assert time.monotonic() < end, f"{words!r} not in {self.output!r}"
            time.sleep(0.005)


class Program:
    """Starts the program on a tiny model in a folder.

    Args:
        folder: for logs and run directories.
        options: command line of every run.
    """

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder = folder
        self.options = options
        self._count = 0

    def start(
        self,
        *overrides: str,
        fault: str = "",
        environment: dict[str, str] | None = None,
        with_plots: bool = False,
        **arguments: object,
    ) -> Process:
        """Start a run.

        Args:
            overrides: settings, without `--config.`.
            fault: a function of `tests/support/injected.py` to call in the process first.
            environment: variables that a launcher would set.
            with_plots: otherwise its plots, a fifth of its time, are blank.
            arguments: of that function.
        """
        self._count += 1
        log = self.folder / f"output-{self._count}.txt"
        log.touch()
        arguments = {name: str(v) if isinstance(v, Path) else v for name, v in arguments.items()}
        command = [*self.options, *(f"--config.{override}" for override in overrides)]
        job = (command, str(log), environment or {}, with_plots, fault, arguments)
        process = FORK.Process(target=_become, args=job, daemon=True)
        process.start()
        return Process(process, log)

    def start_together(self, count: int, *overrides: str) -> list[Process]:
        """Start one run in several processes, as torchrun would."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        return [
            self.start(
                *overrides,
                environment={
                    "MASTER_ADDR": "localhost",
                    **{name: str(value) for name, value in shared.items()},
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                },
            )
            for rank in range(count)
        ]

    def run(self, *overrides: str, **options: object) -> tuple[int, str]:
        """Run to the end: exit code and output; options as for `start`."""
        process = self.start(*overrides, **options)
        return process.wait(), process.output


def _become(
    command: list[str],
    output: str,
    environment: dict[str, str],
    with_plots: bool,
    fault: str,
    arguments: dict[str, object],
) -> None:
    """Be the program in this process; never returns."""
    log = os.open(output, os.O_WRONLY | os.O_APPEND)
    for target in (1, 2):
        os.dup2(log, target)
    sys.stdout.reconfigure(line_buffering=True)
    sys.argv = ["mo_train.py", *command]
    code = 1
    try:
        os.environ.update(environment)
        if not with_plots:
            leave_plots_blank(pytest.MonkeyPatch())
        if fault:
            injected = importlib.import_module("tests.support.injected")
            getattr(injected, fault)(**arguments)
        runpy.run_path("mo_train.py", run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
