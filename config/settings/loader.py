"""From the command line to a ConfigDict: `--config FILE` and `--config.section.key=value`.

`ml_collections.config_flags` understands the same words, but stops at the first mistake with a
traceback and ignores a tuple that it cannot read; this loader reports all mistakes together.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from config import base
from config.settings.errors import ConfigError
from config.settings.files import is_file, make_importable_beside
from config.settings.resume import AUTO, settings_in

if TYPE_CHECKING:
    from collections.abc import Sequence

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def load(arguments: Sequence[str], default: Path) -> tuple[ConfigDict, list[str]]:
    """Load a recipe, or the settings of the run to continue, and apply overrides.

    A run named by `--config.resume_from` brings its own settings, unless `--config` is given.

    Args:
        arguments: command line without the program's name; `--config.a.b=1` and `--config.a.b 1`
            are the same.
        default: recipe used without either.

    Returns:
        The configuration, and one sentence for each argument that could not be applied.

    Raises:
        ConfigError: if the recipe itself cannot be loaded.
    """
    pairs, problems = _pairs(arguments)
    named = dict(pairs)
    recipe, run = named.get("config"), named.get("config.resume_from", "")
    settings = settings_in(Path(run)) if recipe is None and run not in {"", AUTO} else None
    if settings is not None:
        config = ConfigDict({**settings, "resume_force": ()})
    else:
        config = load_recipe(default if recipe is None else Path(recipe))
    for name, value in pairs:
        if name == "config":
            continue
        try:
            _override(config, name.removeprefix("config."), value)
        except ValueError as error:
            problems.append(str(error))
    return config, problems


def load_recipe(path: Path) -> ConfigDict:
    """Run the `get_config()` of a recipe file.

    Raises:
        ConfigError: if the file is absent, fails, or returns something else.
    """
    if not is_file(path):
        raise ConfigError([f"--config={path} is not a file; recipes are in config/"])
    if path.samefile(base.__file__):
        return base.get_config()
    spec = importlib.util.spec_from_file_location("recipe", path)
    if spec is None or spec.loader is None:
        raise ConfigError([f"--config={path} is not a Python file"])
    module = importlib.util.module_from_spec(spec)
    make_importable_beside(path)
    sys.modules[spec.name] = module  # where dataclasses of the recipe look up their types
    try:
        spec.loader.exec_module(module)
        return ConfigDict(module.get_config())
    except Exception as error:
        raise ConfigError([f"--config={path} has no working get_config(): {error!r}"]) from error


def _pairs(arguments: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(name, value) of every --config argument, and the problems met."""
    pairs, problems, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not (name == "config" or name.startswith("config.")):
            problems.append(f"{argument!r} is not understood; settings look like --config.seed=1")
        elif equals:
            pairs.append((name, value))
        elif rest and not rest[0].startswith("--"):
            pairs.append((name, rest.pop(0)))
        else:
            problems.append(f"{argument} needs a value, as in {argument}=VALUE")
    return pairs, problems


def _override(config: ConfigDict, name: str, text: str) -> None:
    """Set one dotted setting from its text.

    Raises:
        ValueError: with the whole message for the user.
    """
    *sections, key = name.split(".")
    section = config
    for depth, part in enumerate((*sections, key)):
        if not isinstance(section, ConfigDict) or part not in section:
            names = list(section.keys()) if isinstance(section, ConfigDict) else []
            close = difflib.get_close_matches(part, names, n=1)
            hint = f"; did you mean {'.'.join([*sections[:depth], *close])}?" if close else ""
            raise ValueError(f"{name} is not a setting{hint}")
        if depth < len(sections):
            section = section[part]
    current = section[key]
    keys = ", ".join(current.keys()) if isinstance(current, ConfigDict) else ""
    if keys:
        raise ValueError(f"{name}={text} is a section; set one of its keys: {keys}")
    section[key] = _read(name, text, current)


def _read(name: str, text: str, current: object) -> object:
    """`text` as a value of the type of `current`."""
    try:
        if isinstance(current, bool):
            return _BOOLEANS[text.lower()]
        if isinstance(current, int):
            return int(text)
        if isinstance(current, float):
            return float(text)
        if isinstance(current, tuple):
            return _read_tuple(text)
    except (ValueError, KeyError, SyntaxError) as error:
        kinds = {bool: "True or False", int: "a whole number", float: "a number"}
        kind = kinds.get(type(current), "a list such as a,b or \"('a','b')\"")
        raise ValueError(f"{name}={text} must be {kind}") from error
    return text


def _read_tuple(text: str) -> tuple[object, ...]:
    """Both `a,b` and `('a', 'b')`; numbers become numbers."""
    stripped = text.strip()
    if stripped.startswith(("(", "[")):
        value = ast.literal_eval(stripped)
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    items = [item.strip() for item in stripped.split(",") if item.strip()]
    for number in (int, float):
        try:
            return tuple(number(item) for item in items)
        except ValueError:
            continue
    return tuple(items)
