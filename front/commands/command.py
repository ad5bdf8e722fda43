"""What a command of `mo_front.py` is made of."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from front.errors import FrontError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of `mo_front.py`.

    Attributes:
        summary: a line for `--help`; a command explains itself in its function's docstring.
        add_arguments: adds the command's arguments to its parser.
        run: does it, and prints what it did.
    """

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], object]
    run: Callable[[argparse.Namespace], None]


def say(line: str) -> None:
    """Print a line of the answer."""
    sys.stdout.write(line + "\n")


def empty_folder(path: Path) -> Path:
    """A folder to write to, made if absent.

    Raises:
        FrontError: if something is in it, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise FrontError(f"{path} is not empty; give a new folder")
    except OSError as error:
        raise FrontError(f"{path} cannot be written to: {error}") from error
    return path
