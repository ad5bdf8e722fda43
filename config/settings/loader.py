"""From the command line to a ConfigDict: `--config FILE` and `--config.section.key=value`.

`ml_collections.config_flags` understands the same words, but stops at the first mistake with a
traceback and ignores a tuple that it cannot read; this loader reports all mistakes together.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from config import base
from config.settings.declared import declared_in, defaults_of, expand_home
from config.settings.errors import ConfigError
from config.settings.files import is_file, make_importable_beside
from config.settings.removed import REMOVED
from config.settings.resume import AUTO, run_meant_by, settings_in
from config.settings.terminal import typed_text
from config.settings.unknown import unknown_setting

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from config.settings.declared import Declared

RECIPES = Path(base.__file__).parent
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def load(
    arguments: Sequence[str], default: Path, flags: Collection[str] = ()
) -> tuple[ConfigDict, list[str]]:
    """Load a recipe, or the settings of the run to continue, and apply overrides.

    A run named by `--config.resume_from` brings its own settings, unless `--config` is given.

    Args:
        arguments: command line without the program's name; `--config.a.b=1` and `--config.a.b 1`
            are the same.
        default: recipe used without either.
        flags: what else the command line may hold, to suggest for a word that is not understood.

    Returns:
        The configuration, and one sentence for each argument that could not be applied.

    Raises:
        ConfigError: if the recipe itself cannot be loaded.
    """
    pairs, problems = _pairs(arguments, flags)
    named = dict(pairs)
    recipe, run = named.get("config"), expand_home(named.get("config.resume_from", ""))
    settings = settings_in(run_meant_by(run)) if recipe is None and run not in {"", AUTO} else None
    if settings is not None:
        config = ConfigDict({**settings, "resume_force": ()})
    else:
        config = load_recipe(default if recipe is None else find_recipe(recipe))
    for name, value in pairs:
        if name == "config":
            continue
        try:
            _override(config, name.removeprefix("config."), value)
        except ValueError as error:
            problems.append(str(error))
    return config, problems


def find_recipe(name: str) -> Path:
    """The file that `--config=NAME` means: a path, or the bare name of a recipe of `config/`."""
    path = Path(expand_home(name))
    bare = RECIPES / f"{name.removesuffix('.py')}.py"
    return bare if not is_file(path) and path.name == name and is_file(bare) else path


def load_recipe(path: Path) -> ConfigDict:
    """Run the `get_config()` of a recipe file.

    Raises:
        ConfigError: if the file is absent, fails, or returns something else.
    """
    if not is_file(path):
        names = sorted(recipe.stem for recipe in RECIPES.glob("[!_]*.py"))
        close = difflib.get_close_matches(path.stem, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"try {', '.join(names)}"
        raise ConfigError([f"--config={path} is not a file, nor a recipe of config/; {hint}"])
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
        missing = error.name if isinstance(error, AttributeError) else None
        gone = [name for name in REMOVED if name.split(".")[0] == missing]  # with its section
        problems = [f"--config={path}: {REMOVED[name].advice(name)}" for name in gone]
        problems = problems or [f"--config={path} has no working get_config(): {error!r}"]
        raise ConfigError(problems) from error


def _pairs(
    arguments: Sequence[str], flags: Collection[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """(name, value) of every --config argument, and the problems met."""
    pairs, problems, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not (name == "config" or name.startswith("config.")):
            problems.append(f"{argument!r} is not understood; {_advice(argument, flags)}")
        elif equals:
            pairs.append((name, value))
        elif rest and not rest[0].startswith("--"):
            pairs.append((name, rest.pop(0)))
        else:
            problems.append(f"{argument} needs a value, as in {argument}=VALUE")
    return pairs, problems


def _advice(argument: str, flags: Collection[str]) -> str:
    """A suggestion for an argument that is not understood."""
    word, equals, value = argument.partition("=")
    if word.lstrip("-") in defaults_of(base.Settings):
        return f"did you mean --config.{word.lstrip('-')}{equals}{value}?"
    if close := difflib.get_close_matches(word, [*flags, "--config"], n=1):
        return f"did you mean {close[0] if close[0] in flags else close[0] + equals + value}?"
    return "settings look like --config.seed=1"


def _override(config: ConfigDict, name: str, text: str) -> None:
    """Set one dotted setting from its text.

    Raises:
        ValueError: with the whole message for the user.
    """
    settings = defaults_of(base.Settings)
    if keys := [each.removeprefix(f"{name}.") for each in settings if each.startswith(f"{name}.")]:
        raise ValueError(f"{name}={text} is a section; set one of its keys: {', '.join(keys)}")
    if name not in settings:
        raise ValueError(unknown_setting(name, settings))
    *sections, key = name.split(".")
    section, value = config, _read(name, text, declared_in(base.Settings)[name])
    with config.unlocked(), config.ignore_type():
        for part in sections:
            if part not in section:
                section[part] = ConfigDict()
            section = section[part]
            if not isinstance(section, ConfigDict):
                return  # the recipe's mistake, which `parse` names
        section[key] = value


def _read(name: str, text: str, setting: Declared) -> object:
    """`text` as a value of a setting's type."""
    kind = setting.kind
    try:
        if kind is bool:
            return _BOOLEANS[text.lower()]
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
        if typing.get_origin(kind) is tuple:
            return _read_tuple(text)
    except (ValueError, KeyError, SyntaxError) as error:
        kinds = {bool: "True or False", int: "a whole number", float: "a number"}
        words = kinds[kind] if isinstance(kind, type) else "a list such as a,b or \"('a','b')\""
        raise ValueError(f"{name}={text} must be {words}") from error
    try:
        return text if setting.is_path else typed_text(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}={text!r} must be text in UTF-8") from error


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
