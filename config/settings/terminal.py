"""What is printed, and what is typed, in a terminal of any encoding."""

from __future__ import annotations

import io
import os
import sys


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


def is_broken(text: str) -> bool:
    r"""Whether a text holds half a character, which no model can read.

    >>> is_broken("\ud83d"), is_broken("\U0001f600")
    (True, False)
    """
    return any("\ud800" <= character <= "\udfff" for character in text)
