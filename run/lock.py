"""One process at a time writes to a run directory."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from typing import TYPE_CHECKING, TextIO

from config.settings.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

_NAME = ".lock"


def lock(folder: Path) -> TextIO:
    """Lock a folder for this process, until it ends or closes what is returned.

    The kernel lets go when the process dies, however it dies: there is no stale lock to remove.

    Raises:
        UserError: if another process holds it, naming that process.
    """
    file = (folder / _NAME).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise UserError(
            f"{folder} is in use by {owner}; wait for it or stop it, or choose another run_name"
        ) from None
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s cannot be locked (%s); start no second run in it", folder, error)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
