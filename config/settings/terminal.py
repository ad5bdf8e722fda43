"""Output to, and commands for, a terminal of any encoding."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def print_any_character() -> None:
    """Print an escape in place of what the terminal's encoding lacks, as stderr always does.

    Names of files may hold bytes that are no text at all; Python keeps these as half characters.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def typed_text(argument: str) -> str:
    """An argument of the command line as text, also where the terminal claims to know ASCII only.

    Raises:
        ValueError: if its bytes are not UTF-8.
    """
    return os.fsencode(argument).decode("utf-8") if is_broken(argument) else argument


def typed_command(program: str, *arguments: object) -> str:
    """A command line that runs one of the project's programs from the current folder.

    Args:
        program: such as "mo_front.py".
        arguments: as they are; quoted where a shell would read them differently.
    """
    python = shutil.which("python")
    is_on_path = python is not None and Path(python) == Path(sys.executable)
    words = ["python" if is_on_path else near(sys.executable), near(_ROOT / program), *arguments]
    return shlex.join(str(word) for word in words)


def counted(number: int, one: str, more: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "policy", "policies"), counted(3, "policy", "policies")
        ('1 policy', '3 policies')
    """
    return f"{number} {one if number == 1 else more}"


def near(path: str | Path) -> str:
    """A path as seen from the current folder, if it lies in it; else as it is."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def is_broken(text: str) -> bool:
    r"""Whether a text holds half a character, which no model can read.

    >>> is_broken("\ud83d"), is_broken("\U0001f600")
    (True, False)
    """
    return any("\ud800" <= character <= "\udfff" for character in text)
