"""Files that a user names, and what lies beside them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name too long for one is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; a name too long for one is none."""
    try:
        return path.exists()
    except OSError:
        return False


def make_importable_beside(path: Path) -> None:
    """Let a Python file import what lies in its folder, as if it were run; all else comes first."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
