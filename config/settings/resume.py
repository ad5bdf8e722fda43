"""The settings of a run that is continued: what they were, and which of them may change."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.base import Settings
from config.settings.declared import OnResume, declared_in, defaults_of
from config.settings.errors import ConfigError
from config.settings.files import exists
from config.settings.flat import flatten, nested
from config.settings.removed import REMOVED, carried_over
from config.settings.runs import named_run

if TYPE_CHECKING:
    from collections.abc import Mapping

AUTO = "auto"  # of resume_from: whichever run of the log directory the settings mean
# Values that runs used before the setting existed, where today's default is another.
_BEFORE = {
    "rewards.sources": (),
    "evaluation.num_steps": 0,
    "evolution.start": "even_weights",
    "pretrained.prompt_parts": 1,
    "sample.sampler": "ddim",
    "train.max_sensitivity": 0.0,
}


def completed(given: Mapping[str, Any], *, is_finished: bool = False) -> dict[str, Any]:
    """Nested settings of a run, with what it did about those that its program did not have yet.

    Args:
        given: `Settings.to_json()` of the run.
        is_finished: whether its policies are only drawn from, see `carried_over`.

    Raises:
        ConfigError: if a setting is gone and this version does something else.
    """
    carried, problems = carried_over(_read(given), is_finished=is_finished)
    if problems:
        raise ConfigError(problems)
    return nested({**_absent(), **carried})


def has_checkpoint(path: Path) -> bool:
    """Whether a folder holds a run that could be continued."""
    try:
        return any(path.glob("checkpoints/[0-9]*"))
    except (OSError, ValueError):  # a name too long or with NUL, a folder that may not be read
        return False


def run_meant_by(resume_from: str) -> Path:
    """The run directory that a path means: itself, or the one that it lies in.

    So one of a run's checkpoints, or its front, stands for the run. The run resumes from its last
    checkpoint.
    """
    path = named_run(Path(resume_from))
    inside = path.resolve().parents[:2] if exists(path) else ()
    return next((each for each in (path, *inside) if has_checkpoint(each)), path)


def settings_in(run: Path) -> dict[str, Any] | None:
    """The nested settings that a run directory was made with; None if no `config.json` is there.

    Raises:
        ConfigError: if the file is damaged, or holds what this version cannot do.
    """
    path = run / "config.json"
    try:
        return completed(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except OSError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            [f"{path} is damaged ({error!r}); give the settings of the run with --config and so on"]
        ) from error


def changed_settings(before: Mapping[str, Any], settings: Settings) -> list[str]:
    """Allowed differences between a run and its continuation, a sentence each.

    Allowed are the changes that `config/base.py` marks so, and whatever `resume_force` names. So is
    a setting that the run's version of the program did not have, if its value does what that
    version did.

    Args:
        before: `Settings.to_json()` of the run, or `settings_in` its directory.
        settings: of the program now.

    Raises:
        ConfigError: listing what differs and is not allowed.
    """
    began, new, absent = _read(before), _read(settings.to_json()), _absent()
    old, refused = carried_over(began)
    accepted = [
        f"{name} was {_shown(began, name)} and is not a setting any more"
        for name in sorted(began.keys() & REMOVED.keys())
        if REMOVED[name].is_harmless and began[name] != REMOVED[name].was
    ]
    for name in sorted(name for name in {*old, *new} if old.get(name) != new.get(name)):
        change = f"{name} was {_shown(old, name)} and is {_shown(new, name)} now"
        on_resume = declared_in(Settings)[name].on_resume if name in new else OnResume.FREE
        is_longer = on_resume is OnResume.LONGER and new[name] > old.get(name, math.inf)
        is_new = name not in old and new[name] == absent[name]
        if on_resume is OnResume.FREE or is_longer or is_new:
            accepted.append(change)
        elif on_resume is OnResume.ROUNDING:
            accepted.append(f"{change}; results stay the same up to rounding")
        elif on_resume is OnResume.FIXED:
            refused.append(f"{change}; its policies fit no other, so start a new run for it")
        elif name in settings.resume_force:
            accepted.append(f"{change}; forced by resume_force")
        else:
            refused.append(
                f"{change}; to continue with it all the same, --config.resume_force={name}"
            )
    if refused:
        raise ConfigError(
            refused,
            "A run continues with the settings it began with: those are used where no --config is "
            "given, as in --config.resume_from=RUN_DIRECTORY.",
        )
    hidden = {"resume_from", "resume_force"}
    return [change for change in accepted if change.split(" ")[0] not in hidden]


def check_prompts(before: Mapping[str, str], now: Mapping[str, str], settings: Settings) -> None:
    """Refuse prompts other than the run began with, unless `resume_force` names them.

    Args:
        before: role -> digest, as read from its checkpoint; without roles of an older program.
        now: of all roles.
        settings: of the program now.

    Raises:
        ConfigError: naming the roles.
    """
    changed = [f"prompts.{role}" for role in now if before.get(role, now[role]) != now[role]]
    refused = [name for name in changed if name not in settings.resume_force]
    if refused:
        raise ConfigError(
            [f"{name}: its file holds other prompts than when the run began" for name in refused],
            "Restore the file, or continue with the new prompts by "
            f"--config.resume_force={','.join(refused)}",
        )


def _absent() -> dict[str, Any]:
    """What a run did about settings that it does not have, by dotted name."""
    return {**defaults_of(Settings), **_BEFORE}


def _read(given: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names and values of nested settings, without copies; tuples for the lists of JSON."""
    copies = {name for name, each in declared_in(Settings).items() if each.copy_of}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in flatten(given)
        if name not in copies
    }


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "not there"
    return repr(list(values[name]) if isinstance(values[name], tuple) else values[name])
