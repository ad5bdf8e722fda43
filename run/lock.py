"""One process at a time writes to a run directory."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, TextIO

from filelock import lock_descriptor

from config.settings.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

_NAME = ".lock"


def lock(folder: Path) -> TextIO:
    """Lock a folder for this process, until it ends or closes what is returned.

    The kernel releases the lock when the process dies, so there is never a stale lock to remove.

    Raises:
        UserError: if another process holds it, naming that process.
    """
    file = (folder / _NAME).open("a+", encoding="utf-8")
    try:
        is_ours = lock_descriptor(file.fileno(), blocking=False)
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s cannot be locked (%s); start no second run in it", folder, error)
        is_ours = True
    if not is_ours:
        with file:
            owner = _owner(file)
        raise UserError(
            f"{folder} is in use by {owner}; wait for it or stop it, or choose another run_name"
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _owner(file: TextIO) -> str:
    """Which process holds the lock, if it says so where others can read it (not on Windows)."""
    try:
        file.seek(0)
        return file.read().strip() or "another process"
    except OSError:
        return "another process"
