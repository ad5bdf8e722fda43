"""Peers in their own virtual environments, which answer in lines of JSON.

A worker's process stays alive over many requests, so that its rounds interleave with this
project's. It reports its own CPU time and memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent


class WorkerError(RuntimeError):
    """A worker died; its own message is on stderr."""


def virtual_environment(name: str, packages: Sequence[str], cache: Path) -> Path:
    """The Python of a virtual environment with exactly these versions of packages.

    Args:
        name: of its folder in `cache`.
        packages: for pip, with versions.
        cache: made if missing; an environment found there is reused.
    """
    folder = cache / name
    python, done = folder / "bin" / "python", folder / "packages.txt"
    wanted = "\n".join(packages)
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        common.say(f"Making {folder}: {', '.join(packages)}")
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-qq", *packages],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        done.write_text(wanted, encoding="utf-8")
    return python


class Worker:
    """A script in `benchmarks/workers/` that answers each line of JSON with another.

    Args:
        python: its interpreter.
        script: file name.
        arguments: for the script.

    Raises:
        WorkerError: from `ask`, if the process has ended.
    """

    def __init__(self, python: str | Path, script: str, arguments: Sequence[str] = ()) -> None:
        self.script = script
        self._process = subprocess.Popen(
            [str(python), str(ROOT / "benchmarks" / "workers" / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )

    @classmethod
    def own(cls, script: str, arguments: Sequence[str] = ()) -> Worker:
        """A worker with this project's own interpreter."""
        return cls(sys.executable, script, arguments)

    def ask(self, command: str, **values: Any) -> Any:
        """Send one command and wait for its answer.

        Raises:
            WorkerError: if the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"command": command, **values}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self.script} ended during {command!r}; its error is above")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.kill()
        self._process.wait()
