"""From a ConfigDict to typed settings, or to one message that lists every problem.

Nothing heavy is imported here, so a wrong setting is met before any model loads.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from typing import TYPE_CHECKING, Any

from config.settings.errors import ConfigError
from config.settings.limits import Limit, OneOf
from config.settings.rules import rule_problems
from config.settings.schema import Settings, flatten

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ml_collections import ConfigDict

Choices = typing.Mapping[str, typing.Collection[str]]
Rule = typing.Callable[[typing.Mapping[str, typing.Any]], typing.Iterable[str]]


def parse(config: ConfigDict, choices: Choices, rules: Sequence[Rule] = ()) -> Settings:
    """Check a configuration and freeze it.

    Args:
        config: as made by `config/base.py`, with overrides applied.
        choices: dotted setting -> the names it may take, from the tables of `ddpo/` and `morl/`;
            for a tuple of names every member is checked.
        rules: besides those of `config/settings/rules.py`: flat settings -> a sentence for each
            problem.

    Returns:
        The typed settings.

    Raises:
        ConfigError: listing every problem found.
    """
    values = config.to_dict()
    if isinstance(values.get("evolution"), dict):  # the run's seed also keys the search
        values["evolution"] = {**values["evolution"], "seed": values.get("seed")}
    limits = {setting: OneOf(*names) for setting, names in choices.items()}
    problems: list[str] = []
    checked = _checked_section(Settings, values, "", limits, problems)
    flat = dict(flatten(checked))
    for rule in (rule_problems, *rules):
        problems += rule(flat)
    if problems:
        raise ConfigError(problems)
    return typing.cast("Settings", _build(Settings, checked))


def _checked_section(
    section: type,
    values: Mapping[str, Any],
    prefix: str,
    limits: Mapping[str, Limit],
    problems: list[str],
) -> dict[str, Any]:
    """The values of one section that are right by themselves; problems are appended."""
    hints = typing.get_type_hints(section, include_extras=True)
    out: dict[str, Any] = {}
    for name in values:
        if name not in hints:
            close = difflib.get_close_matches(name, hints, n=1)
            advice = f"did you mean {prefix}{close[0]}?" if close else "remove it"
            problems.append(f"{prefix}{name} is not a setting; {advice}")
    for name, kind in hints.items():
        setting = prefix + name
        if name not in values:
            problems.append(f"{setting} is missing; config/base.py has its default")
        elif dataclasses.is_dataclass(kind):
            if isinstance(values[name], dict):
                nested = typing.cast("type", kind)
                out[name] = _checked_section(nested, values[name], f"{setting}.", limits, problems)
            else:
                problems.append(f"{setting}={values[name]!r} must be a section of settings")
        else:
            given = [limits[setting]] if setting in limits else []
            value, found = _checked_value(setting, values[name], kind, given)
            if not found:
                out[name] = value
            elif setting != "evolution.seed":  # reported once, as seed
                problems += found
    return out


def _checked_value(
    setting: str, value: object, kind: object, limits: Sequence[Limit]
) -> tuple[object, list[str]]:
    """The value as its type, and what is wrong with it."""
    bare, *own = typing.get_args(kind) if typing.get_origin(kind) is typing.Annotated else [kind]
    try:
        value = _coerce(value, bare)
    except TypeError as error:
        return value, [f"{setting}={value!r} must be {error}"]
    found = [limit.problem(setting, value) for limit in (*own, *limits)]
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


def _build(section: type, values: Mapping[str, Any]) -> object:
    hints = typing.get_type_hints(section)
    return section(
        **{
            name: _build(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
            for name, value in values.items()
        }
    )
