"""Files that a user names, and what lies beside them."""

from __future__ import annotations

import sys
from pathlib import Path

from config.settings.declared import expand_home


def path(text: str) -> Path:
    """A path as a command line gives it: `~` is the home directory, which shells leave in `--a=~`.

    As the `type` of an argument, argparse names it in its messages.
    """
    return Path(expand_home(text))


def is_file(file: Path) -> bool:
    """Whether there is such a file; a name too long for one is none."""
    try:
        return file.is_file()
    except OSError:
        return False


def exists(file: Path) -> bool:
    """Whether there is such a file or folder; a name too long for one is none."""
    try:
        return file.exists()
    except OSError:
        return False


def make_importable_beside(file: Path) -> None:
    """Let a Python file import what lies in its folder, as if it were run; all else comes first."""
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
