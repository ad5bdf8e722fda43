"""The settings of a run that is continued: what they were, and which of them may change."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from config import base
from config.settings.errors import ConfigError
from config.settings.schema import flatten

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from config.settings.schema import Settings

AUTO = "auto"  # of resume_from: whichever run of the log directory the settings mean
# Settings that change nothing in what is learnt.
_FREE = {
    "logdir",
    "run_name",
    "resume_from",
    "resume_force",
    "trackers",
    "rewards.remotes",
    "rewards.remote_attempt_seconds",
    "rewards.remote_retries",
    "rewards.timeout_seconds",
    "rewards.on_error",
    "rewards.max_invalid_fraction",
    "processes.timeout_seconds",
    "checkpoint.keep",
    "checkpoint.max_failures",
    "train.max_skipped_steps",
    "evaluation.report_images",
}
# Settings that say how to compute, not what: the results stay the same up to rounding. To lower the
# rows of a pass is the way on for a run that ran out of memory.
_ROUNDING = {
    "num_threads",
    "speed",
    "processes.count",
    "pretrained.channels_last",
    "pretrained.tf32",
    "pretrained.compile",
    "pretrained.vae_slicing",
    "pretrained.offload_text_encoders",
    "rewards.batch_size",
    "rewards.device",
    "sample.rows_per_pass",
    "sample.offload_rollouts",
    "train.rows_per_pass",
    "train.gradient_checkpointing",
    "train.single_pass",
}
# Settings that policies, search and calibration are made of.
_NEVER = {
    "rewards.names",
    "rewards.reference",
    "rewards.ideal",
    "rewards.scales",
    "agents.kind",
    "adapter.rank",
    "adapter.target_modules",
    "evolution.num_agents",
}
_LONGER = "evolution.evolutionary_generations"
# What runs did before there was such a setting, where today's default is something else.
_BEFORE = {
    "evaluation.num_steps": 0,
    "evolution.start": "even_weights",
    "train.skip_last_steps": 0,
}


def completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings of a run, with what it did about those that its program did not have yet.

    Args:
        given: `Settings.to_json()` of the run.
    """
    config = base.get_config()
    config.update_from_flattened_dict(_BEFORE)
    values = _merged(config.to_dict(), given)
    if values["pretrained"].pop("fuse", False):  # its name until there was `speed`
        values["speed"] = "fused"
    return values


def settings_in(run: Path) -> dict[str, Any] | None:
    """The nested settings that a run directory was made with; None if no `config.json` is there.

    Raises:
        ConfigError: if the file is damaged.
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
    """What differs between a run and its continuation, a sentence each, if that is allowed.

    Allowed are settings that change nothing in what is learnt, those that change it by rounding
    only, more evolutionary generations, whatever `resume_force` names, and settings that this
    version of the program has and that of then had not, as long as they say what it did.

    Args:
        before: `Settings.to_json()` of the run, or `settings_in` its directory.
        settings: those of now.

    Raises:
        ConfigError: listing what differs and is not allowed.
    """
    old, new, default = map(_flat, (before, settings.to_json(), completed({})))
    accepted, refused = [], []
    names = {*old, *new} - {"evolution.seed"}  # which is the run's seed
    for name in sorted(name for name in names if old.get(name) != new.get(name)):
        change = f"{name} was {_shown(old, name)} and is {_shown(new, name)} now"
        is_longer = name == _LONGER and new[name] > old.get(name, math.inf)
        is_new = name not in old and new[name] == default.get(name)
        if name in _FREE or is_longer or is_new or name not in new:
            accepted.append(change)
        elif name in _ROUNDING:
            accepted.append(f"{change}; results stay the same up to rounding")
        elif name in _NEVER:
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
    """Refuse prompts that are not those the run began with, unless `resume_force` names them.

    Args:
        before: role -> digest, as read from its checkpoint; without roles of an older program.
        now: of all roles.
        settings: those of now.

    Raises:
        ConfigError: naming the roles.
    """
    changed = [f"prompts.{role}" for role in now if before.get(role, now[role]) != now[role]]
    refused = [name for name in changed if name not in settings.resume_force]
    if refused:
        raise ConfigError(
            [f"{name}: its file holds other prompts than when the run began" for name in refused],
            "Restore the file, or go on with the new prompts by "
            f"--config.resume_force={','.join(refused)}",
        )


def _merged(defaults: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Nested defaults with the given values, which come from JSON, in their place."""
    merged = dict(defaults)
    for name, value in given.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merged(merged[name], value)
        else:
            merged[name] = tuple(value) if isinstance(value, list) else value
    return merged


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names and values, with lists for tuples as in JSON."""
    pairs = flatten(settings)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "not there"
