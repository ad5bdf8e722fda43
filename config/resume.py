"""Which settings a run may change when it is continued."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from config.errors import ConfigError
from config.schema import flatten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from config.schema import Settings

# Settings that may differ between a run and its continuation.
_FREE_ON_RESUME = {
    "resume_from",
    "logdir",
    "run_name",
    "trackers",
    "num_threads",
    "rewards.remotes",
    "rewards.remote_attempt_seconds",
    "rewards.remote_retries",
    "rewards.timeout_seconds",
    "rewards.on_error",
    "rewards.max_invalid_fraction",
    "processes.count",
    "processes.timeout_seconds",
}


def check_resumable(before: Mapping[str, Any], settings: Settings) -> None:
    """Refuse to continue a run under other settings; more evolutionary generations are welcome.

    Args:
        before: `Settings.to_json()` of the run, as read from its checkpoint.
        settings: those of now.

    Raises:
        ConfigError: listing what differs.
    """
    old, new = dict(flatten(before)), settings.flat()
    changed = {name for name in {*old, *new} - _FREE_ON_RESUME if old.get(name) != new.get(name)}
    longer = "evolution.evolutionary_generations"
    if longer in changed and new[longer] > old.get(longer, math.inf):
        changed.remove(longer)
    if changed:
        raise ConfigError(
            [
                f"{name} was {old.get(name)!r} when the run began and is {new.get(name)!r} now; "
                "a run continues with the settings it began with"
                for name in sorted(changed)
            ]
        )
