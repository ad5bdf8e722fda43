"""Texts that plots show."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from front.member import Guard
    from morl.types import Objective


def plain_label(text: str) -> str:
    r"""A text as matplotlib draws it: `$` is no formula, and half a character is an escape.

    >>> plain_label("a $5 or $6 note")
    'a \\$5 or \\$6 note'
    """
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def axis_label(measure: Objective | Guard) -> str:
    """The name and unit of what an axis shows."""
    return plain_label(f"{measure.name} [{measure.unit}]")
