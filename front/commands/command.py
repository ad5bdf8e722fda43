"""What a command of `mo_front.py` is made of."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


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
