"""Rewards by their name in `rewards.names`: remote, from the table, or the user's own.

A name that `rewards.remotes` gives a URL is scored there, even if the table has it too. A name with
a colon whose beginning is in `KINDS` is of that kind. Any other name with a colon is the user's:
`my_rewards:warmth` is in a module on the path, `path/to/file.py:warmth` in a file. It may be

* a function `(images, prompts) -> (rows,)`;
* a class, or a function with no parameter or only `device`, that makes such a callable.

Its attribute `unit`, if it has one, names the unit of the score.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from config.base import RewardSettings
from config.settings.derived import objective_name
from config.settings.errors import UserError
from config.settings.files import is_file, make_importable_beside
from config.settings.limits import OneOf
from ddpo.rewards import (
    KINDS,
    PICTURE_GUARDS,
    REWARDS,
    argument_problem,
    known_entry,
    parts_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import ModuleType

    import torch

    from ddpo.rewards import Reward

DEFAULT_UNIT = "score"
_REMOTE_FRACTION = 0.95  # of a call's time limit: a remote reward gives up just before it


def reward_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each objective, remote or source that cannot be found; loads no model.

    Args:
        flat: dotted settings, without settings that are wrong by themselves.
    """
    remotes = flat.get("rewards.remotes", ())
    for remote in remotes:
        if not _is_remote(remote):
            yield (
                f"rewards.remotes: {remote!r} must look like name=http://host:port/path, where "
                "name is a word that rewards.names can use"
            )
    names = _remote_names(flat)
    if len(set(names)) < len(names):
        yield f"rewards.remotes={remotes} must not give a name twice"
    for name in flat.get("rewards.names", ()):
        problem = name_problem("rewards.names", name, names)
        if problem is not None:
            yield problem
    sources = flat.get("rewards.sources", ())
    defaults = RewardSettings().sources  # known to be right, slow to check
    chosen = (each for each in sources if each not in defaults)
    yield from filter(None, map(_source_problem, chosen))
    if len({text.partition("=")[0] for text in sources}) < len(sources):
        yield f"rewards.sources={sources} must not give a part twice"


def guard_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each guard that is neither a reward nor compares pictures."""
    for name in flat.get("guards.names", ()):
        if name in PICTURE_GUARDS:
            continue
        problem = name_problem("guards.names", name, _remote_names(flat))
        if problem is not None:
            yield f"{problem}. Guards may also be {', '.join(PICTURE_GUARDS)}"
        elif objective_name(name) in PICTURE_GUARDS:
            yield (
                f"guards.names: {name!r} would be called {objective_name(name)}, which is another "
                "guard; give the function another name"
            )


def _source_problem(text: str) -> str | None:
    """The problem with an entry of `rewards.sources`, if any; imports its reward's file."""
    target, _, source = text.partition("=")
    name, _, part = target.partition(".")
    if not (part and source):
        return (
            f"rewards.sources: {text!r} must look like REWARD.PART=SOURCE, as in "
            "aesthetic_score.head=my_head.pth"
        )
    if problem := OneOf(*REWARDS, *PICTURE_GUARDS).problem("rewards.sources", name):
        return problem
    parts = [f"{name}.{known}" for known in parts_of(name)]
    if not parts:
        return f"rewards.sources: {text!r} has no effect, {name} is a formula; remove it"
    return OneOf(*parts).problem("rewards.sources", target)


def _remote_names(flat: Mapping[str, Any]) -> list[str]:
    return [remote.partition("=")[0] for remote in flat.get("rewards.remotes", ())]


def name_problem(setting: str, name: str, remotes: Sequence[str] = ()) -> str | None:
    """The problem with the name of a reward; None if the reward can be found.

    Args:
        setting: the setting that holds the name.
        name: of a reward.
        remotes: the names with a URL in `rewards.remotes`.
    """
    if ":" in name:
        is_kind = name.partition(":")[0] in KINDS
        problem = argument_problem(name) if is_kind else _own_problem(name)
        return None if problem is None else f"{setting}: {name!r} {problem}"
    problem = OneOf(*REWARDS, *remotes).problem(setting, name)
    return (
        None
        if problem is None
        else f"{problem}; a reward of your own is file.py:function or module:function, and "
        f"{' and '.join(f'{kind}:...' for kind in KINDS)} are kinds of rewards"
    )


def build_reward(name: str, settings: RewardSettings, device: torch.device) -> tuple[Reward, str]:
    """Build a reward.

    Args:
        name: as in `rewards.names`.
        settings: of all rewards.
        device: where it runs.

    Returns:
        The reward and its unit.

    Raises:
        UserError: if it cannot be found or is not a reward.
        OSError, ValueError: if its weights cannot be loaded.
    """
    for remote in settings.remotes:
        label, _, url = remote.partition("=")
        if label == name:
            return _remote(url, settings)
    if entry := known_entry(name):
        sources = {part: where.source for part, where in parts_of(name, settings.sources).items()}
        return entry.build(sources, device, settings.dtype), entry.unit
    module, _, attribute = name.rpartition(":")
    try:
        own = getattr(_import(module), attribute)
        reward = own(**_device_argument(own, device)) if _is_factory(own) else own
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"reward {name!r} could not be made: {error!r}") from error
    if not callable(reward):
        raise UserError(
            f"reward {name!r}: expected a function of (images, prompts), got "
            f"{type(reward).__name__}"
        )
    return reward, str(getattr(reward, "unit", getattr(own, "unit", DEFAULT_UNIT)))


def _remote(url: str, settings: RewardSettings) -> tuple[Reward, str]:
    from ddpo.rewards.remote.client import RemoteReward  # noqa: PLC0415 - not needed to list the table

    reward = RemoteReward(url, total_seconds=_REMOTE_FRACTION * settings.timeout_seconds)
    return reward, reward.unit


def _is_remote(text: str) -> bool:
    """Whether a text has the form name=URL."""
    name, _, url = text.partition("=")
    try:
        parts = urlsplit(url)
        return name.isidentifier() and parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        return False


def _is_factory(own: Any) -> bool:
    """Whether a call makes a reward rather than scores."""
    if inspect.isclass(own):
        return True
    return inspect.isfunction(own) and set(inspect.signature(own).parameters) <= {"device"}


def _device_argument(own: Any, device: torch.device) -> dict[str, torch.device]:
    return {"device": device} if "device" in inspect.signature(own).parameters else {}


def _import(module: str) -> ModuleType:
    """Import a module or a file; a file is run only once, however many rewards it holds."""
    if not module.endswith(".py"):
        return importlib.import_module(module)
    path = str(Path(module).resolve())
    if path not in sys.modules:
        spec = importlib.util.spec_from_file_location(path, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is not a Python file")
        make_importable_beside(Path(path))
        # Registered before it runs, as in any import: dataclasses, for one, look their module up.
        sys.modules[path] = loaded = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(loaded)
        except BaseException:
            del sys.modules[path]
            raise
    return sys.modules[path]


def _own_problem(name: str) -> str | None:
    """Why `module:function` cannot be found, judging by the source without running it; or None."""
    module, _, attribute = name.rpartition(":")
    if not attribute.isidentifier() or not module:
        return "must look like module:function or path/to/file.py:function"
    source = Path(module) if module.endswith(".py") else _source(module)
    if source is None or not is_file(source):
        if module.endswith(".py"):
            return f"names a file that does not exist: {module}, seen from {Path.cwd()}"
        return (
            f"names a module that is not on the Python path: {module}; a file is named as "
            f"{module}.py:{attribute}"
        )
    return None if source.suffix != ".py" else _binding_problem(source, attribute)


def _source(module: str) -> Path | None:
    """The file of a module on the Python path, without running it."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # finding a submodule imports its parents, which may raise anything
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


def _binding_problem(source: Path, attribute: str) -> str | None:
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError) as error:
        return f"names a file that is not valid Python: {error}"
    if attribute in _bound_names(tree):
        return None
    offered = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    return f"names a function that {source} does not define; it has {', '.join(offered) or 'none'}"


def _bound_names(tree: ast.Module) -> set[str]:
    """All names that a source binds, at any depth; none of them is refused before import."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names
