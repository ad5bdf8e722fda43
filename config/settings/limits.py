"""Limits of single settings, written beside them: `rank: Annotated[int, AtLeast(1)]`."""

from __future__ import annotations

import difflib
import operator
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Limit(ABC):
    """What a value must satisfy by itself."""

    @abstractmethod
    def problem(self, setting: str, value: Any) -> str | None:
        """A sentence that names the setting, the value and the rule; None if all is well."""


class _Bound(Limit):
    """A number on the right side of a bound."""

    words: str
    holds: Callable[[float, float], bool]

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def problem(self, setting: str, value: float) -> str | None:
        """See `Limit`."""
        if self.holds(value, self.bound):
            return None
        return f"{setting}={value} must be {self.words} {self.bound}"


class AtLeast(_Bound):
    """value >= bound."""

    words, holds = "at least", staticmethod(operator.ge)


class Above(_Bound):
    """value > bound."""

    words, holds = "above", staticmethod(operator.gt)


class AtMost(_Bound):
    """value <= bound."""

    words, holds = "at most", staticmethod(operator.le)


class OneOf(Limit):
    """The value, or every member of a tuple, is one of these names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def problem(self, setting: str, value: str | tuple[str, ...]) -> str | None:
        """See `Limit`."""
        wrong = [
            name
            for name in (value if isinstance(value, tuple) else (value,))
            if name not in self.names
        ]
        if not wrong:
            return None
        close = difflib.get_close_matches(wrong[0], self.names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        listed = ", ".join(repr(name) for name in wrong)
        shown = ", ".join(name or "'' (empty)" for name in sorted(self.names))
        verb = "is" if len(wrong) == 1 else "are"
        return f"{setting}: {listed} {verb} not one of {shown}{hint}"


class Device(Limit):
    """The name of a device as torch writes it, or nothing."""

    def problem(self, setting: str, value: str) -> str | None:
        """See `Limit`."""
        if re.fullmatch(r"(cpu|mps|(cuda|xpu)(:\d+)?)?", value):
            return None
        return f"{setting}={value!r} is not a device; try cpu, cuda, cuda:1, or leave it empty"
