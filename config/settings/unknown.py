"""The message for a name that is not a setting."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from config.settings.removed import REMOVED

if TYPE_CHECKING:
    from collections.abc import Iterable


def unknown_setting(name: str, settings: Iterable[str]) -> str:
    """A sentence that says so, and which setting may be meant, or what replaces one that is gone.

    Args:
        name: what was given.
        settings: the dotted names that there are.
    """
    if name in REMOVED:
        return REMOVED[name].advice(name)
    known = list(settings)
    elsewhere = [each for each in known if each.split(".")[-1] == name.rsplit(".", maxsplit=1)[-1]]
    close = elsewhere or difflib.get_close_matches(name, known, n=1)
    return f"{name} is not a setting; {f'did you mean {close[0]}?' if close else 'remove it'}"
