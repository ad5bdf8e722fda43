"""From a ConfigDict to typed settings, or to one message that lists every problem.

Nothing heavy is imported here, so a wrong setting is reported before any model loads.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import TYPE_CHECKING, Any

from config.base import Settings
from config.settings.declared import declared_in, defaults_of, expand_home, kinds_in
from config.settings.errors import ConfigError
from config.settings.flat import flatten
from config.settings.limits import OneOf
from config.settings.rules import rule_problems
from config.settings.unknown import unknown_setting

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ml_collections import ConfigDict

    from config.settings.declared import Declared
    from config.settings.limits import Limit

Choices = typing.Mapping[str, typing.Collection[str]]
Rule = typing.Callable[[typing.Mapping[str, typing.Any]], typing.Iterable[str]]


def parse(config: ConfigDict, choices: Choices, rules: Sequence[Rule] = ()) -> Settings:
    """Check a configuration and freeze it.

    Args:
        config: as made by `config/base.py`, with overrides applied.
        choices: dotted setting -> the names it may take, from the tables of `ddpo/` and `morl/`;
            for a tuple of names every member is checked.
        rules: more rules than `config/settings/rules.py` has: flat settings -> a sentence for
            each problem.

    Returns:
        The typed settings.

    Raises:
        ConfigError: listing every problem found.
    """
    values = dict(flatten(config.to_dict()))
    declared = declared_in(Settings)
    problems = list(_misplaced(values, declared))
    checked: dict[str, Any] = {}
    for name, setting in declared.items():
        if name not in values or setting.copy_of:
            continue
        given = [OneOf(*choices[name])] if name in choices else []
        value, found = _checked(name, values[name], setting, given)
        problems += found
        if not found:
            checked[name] = value
    for rule in (rule_problems, *rules):
        problems += rule(checked)
    if problems:
        raise ConfigError(problems)
    copies = {name: checked[each.copy_of] for name, each in declared.items() if each.copy_of}
    return typing.cast("Settings", _build(Settings, {**checked, **copies}))


def _misplaced(values: Mapping[str, Any], declared: Mapping[str, Declared]) -> Iterator[str]:
    """Given names that are no settings, and settings that are not given, a sentence each."""
    for name, value in values.items():
        if any(other.startswith(f"{name}.") for other in declared):
            yield f"{name}={value!r} must be a section of settings"
        elif name not in declared:
            yield unknown_setting(name, defaults_of(Settings))
    for name, setting in declared.items():
        is_there = name in values or name.rpartition(".")[0] in values
        if not is_there and not setting.copy_of:
            yield f"{name} is missing; config/base.py has its default"


def _checked(
    name: str, value: object, setting: Declared, limits: Collection[Limit]
) -> tuple[object, list[str]]:
    """The value as its type, and what is wrong with it."""
    try:
        value = _coerce(value, setting.kind)
    except TypeError as error:
        return value, [f"{name}={value!r} must be {error}"]
    if setting.is_path:
        value = expand_home(value)
    found = [limit.problem(name, value) for limit in (*setting.limits, *limits)]
    return value, [problem for problem in found if problem is not None]


def _coerce(value: object, kind: object) -> object:
    """`value` as `kind`; raises TypeError("a whole number") and the like if it is not one."""
    if typing.get_origin(kind) is tuple:
        member = typing.get_args(kind)[0]
        words = "names" if member is str else "numbers"
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"""a tuple of {words}, such as "('a','b')" """.strip())
        try:
            return tuple(_coerce(item, member) for item in value)
        except TypeError as error:
            raise TypeError(f"a tuple of {words}") from error
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    names = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
    if type(value) is not kind:
        raise TypeError(names[typing.cast("type", kind)])
    if kind is str and "\0" in typing.cast("str", value):
        raise TypeError("a text without NUL")
    if kind is float and not math.isfinite(typing.cast("float", value)):
        raise TypeError("a finite number")
    return value


def _build(section: type, values: Mapping[str, Any], prefix: str = "") -> object:
    """A section, and those within it, of the values of its dotted names."""
    return section(
        **{
            name: _build(typing.cast("type", kind), values, f"{prefix}{name}.")
            if dataclasses.is_dataclass(kind)
            else values[prefix + name]
            for name, kind in kinds_in(section).items()
        }
    )
