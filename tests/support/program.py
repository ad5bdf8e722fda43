"""The real program in processes that can be killed, each started in a fraction of a second.

Importing torch and diffusers takes seconds. So one helper process imports them once and forks a
child for every run of the program. Each child is `mo_train.py` with its own command line.

Run as a script, this file is the helper: it reads one JSON request per line and answers with one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT


@dataclass
class Process:
    """One run of the program."""

    helper: Program
    pid: int
    log: Path

    def wait(self) -> int:
        """The exit code; negative if a signal ended it, as in `subprocess`."""
        return os.waitstatus_to_exitcode(self.helper.ask(wait=self.pid)["status"])

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
        self._helper = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )

    def ask(self, **request: object) -> dict:
        self._helper.stdin.write(json.dumps(request) + "\n")
        self._helper.stdin.flush()
        return json.loads(self._helper.stdout.readline())

    def start(
        self,
        *overrides: str,
        fault: str = "",
        environment: dict[str, str] | None = None,
        **arguments: object,
    ) -> Process:
        """Start a run.

        Args:
            overrides: settings, without `--config.`.
            fault: a function of `tests/support/injected.py` to call in the process first.
            environment: variables that a launcher would set.
            arguments: of that function.
        """
        self._count += 1
        log = self.folder / f"output-{self._count}.txt"
        log.touch()
        arguments = {name: str(v) if isinstance(v, Path) else v for name, v in arguments.items()}
        pid = self.ask(
            command=[*self.options, *(f"--config.{override}" for override in overrides)],
            log=str(log),
            fault=fault,
            environment=environment or {},
            arguments=arguments,
        )["pid"]
        return Process(self, pid, log)

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

    def close(self) -> None:
        self._helper.stdin.close()
        self._helper.wait(timeout=10)
        self._helper.stdout.close()


def _serve() -> None:
    for module in ("run.session", "front.publish"):
        importlib.import_module(module)
    importlib.import_module("torch").set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"status": os.waitpid(request["wait"], 0)[1]}
        elif pid := os.fork():
            answer = {"pid": pid}
        else:
            _become(request)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os._exit(0)


def _become(request: dict) -> None:
    """Be the program in this process; never returns."""
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    sys.stdout.reconfigure(line_buffering=True)
    sys.argv = ["mo_train.py", *request["command"]]
    code = 1
    try:
        os.environ.update(request["environment"])
        if request["fault"]:
            injected = importlib.import_module("tests.support.injected")
            getattr(injected, request["fault"])(**request["arguments"])
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


if __name__ == "__main__":
    _serve()
