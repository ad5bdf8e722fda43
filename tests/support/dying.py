"""A process that "dies" at a chosen file operation, as with kill -9, but without a real kill.

From that operation on, every file operation raises, so clean-up code cannot change the disk: it
stays as a killed process would leave it. A file that is being flushed at that moment loses its
second half, as after a power cut.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

OPERATIONS = ("open", "mkdir", "rename", "replace", "unlink", "touch")


class Dead(BaseException):
    """The end of the process; handlers of `Exception` do not catch it."""


class Disk:
    """Counts the operations that change files, and lets the process die at one of them.

    Args:
        monkeypatch: restores everything.
        die_at: number of the operation; with None it never dies.
    """

    def __init__(self, monkeypatch, die_at=None):
        self.die_at = die_at
        self.log = []
        for name in OPERATIONS:
            monkeypatch.setattr(Path, name, self._watched(name, getattr(Path, name)))
        monkeypatch.setattr(os, "fsync", self._watched("fsync", os.fsync))
        monkeypatch.setattr(shutil, "rmtree", self._rmtree)

    def _watched(self, name, original):
        def operation(target, *arguments, **options):
            if name == "open" and not set("wa+") & set("".join(map(str, arguments))):
                return original(target, *arguments, **options)
            self._step(name, target, arguments)
            return original(target, *arguments, **options)

        return operation

    def _rmtree(self, path, ignore_errors=False):
        """Remove one file after another, like `shutil.rmtree`, so that half a folder can stay."""
        if ignore_errors and not path.exists():
            return
        for child in path.iterdir():
            child.unlink()
        self._step("rmdir", path, ())
        path.rmdir()

    def _step(self, name, target, arguments):
        where = Path(f"/proc/self/fd/{target}").readlink() if name == "fsync" else target
        if self.die_at is not None and len(self.log) >= self.die_at:
            if len(self.log) == self.die_at and name == "fsync" and where.is_file():
                os.truncate(where, where.stat().st_size // 2)
            self.log.append(("dead", where))
            raise Dead
        self.log.append((name, where, *[a for a in arguments if isinstance(a, Path)]))
