"""How a setting is declared, and the settings that a dataclass declares.

A declaration is one line of `config/base.py`: `name: Annotated[type, limit, marker] = default`.
Limits are in `config/settings/limits.py`; the markers are here.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.settings.limits import Limit

if TYPE_CHECKING:
    from collections.abc import Mapping


class OnResume(enum.Enum):
    """Whether a resumed run may have another value than the run began with."""

    FORCED = "only if resume_force names it"
    FREE = "yes: it changes nothing in what is learnt"
    ROUNDING = "yes: it changes results by rounding only"
    LONGER = "yes, if it is larger than before"
    FIXED = "never: policies, search and calibration are made of it"


class Content(enum.Enum):
    """What a text may hold."""

    PATH = "a path: `~` is expanded"


@dataclass(frozen=True, slots=True)
class Copy:
    """Not a setting of its own: it has the value of another one."""

    of: str


FREE, ROUNDING = OnResume.FREE, OnResume.ROUNDING
LONGER, FIXED = OnResume.LONGER, OnResume.FIXED
PATH = Content.PATH


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """One setting.

    Attributes:
        kind: its type: bool, int, float, str, or a tuple of one of them.
        default: None for a copy.
        limits: what a value must satisfy by itself.
        on_resume: whether a resumed run may change it.
        is_path: whether `~` is expanded in it.
        copy_of: the setting whose value it has; empty for a setting of its own.
    """

    kind: Any
    default: Any
    limits: tuple[Limit, ...]
    on_resume: OnResume
    is_path: bool
    copy_of: str


def expand_home(value: Any) -> Any:
    """A text, or every text of a tuple, with the home directory for a `~` at its beginning.

    The `~` may also follow a `NAME=` or a `KIND:`. One that cannot be expanded stays.
    """
    if isinstance(value, tuple):
        return tuple(map(expand_home, value))
    begins = re.match(r"([^=]*=|\w+:)?(?=~)", value)
    if begins is None:
        return value
    path = value[begins.end() :]
    try:
        return value[: begins.end()] + str(Path(path).expanduser())
    except RuntimeError:  # ~somebody, who is not a user here
        return value


@functools.cache
def kinds_in(section: type) -> Mapping[str, Any]:
    """The type of each field of a dataclass, with limits and markers."""
    return typing.get_type_hints(section, include_extras=True)


@functools.cache
def declared_in(section: type, prefix: str = "") -> Mapping[str, Declared]:
    """Every setting of a dataclass and of those nested in it, by its dotted name."""
    out: dict[str, Declared] = {}
    for field in dataclasses.fields(section):
        kind, name = kinds_in(section)[field.name], prefix + field.name
        if dataclasses.is_dataclass(kind):
            out.update(declared_in(typing.cast("type", kind), f"{name}."))
        else:
            out[name] = _declared(kind, field.default)
    return out


def _declared(kind: Any, default: Any) -> Declared:
    is_marked = typing.get_origin(kind) is typing.Annotated
    bare, *marks = typing.get_args(kind) if is_marked else (kind,)
    on_resume = [mark for mark in marks if isinstance(mark, OnResume)]
    copies = [mark.of for mark in marks if isinstance(mark, Copy)]
    return Declared(
        kind=bare,
        default=None if copies else default,
        limits=tuple(mark for mark in marks if isinstance(mark, Limit)),
        on_resume=on_resume[0] if on_resume else OnResume.FORCED,
        is_path=PATH in marks,
        copy_of=copies[0] if copies else "",
    )


def defaults_of(section: type) -> dict[str, Any]:
    """Dotted name and default of every setting that is not a copy of another one."""
    declared = declared_in(section)
    return {name: each.default for name, each in declared.items() if not each.copy_of}
