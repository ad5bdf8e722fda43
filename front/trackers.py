"""Trackers that can never stop a run: what fails is reported once, and the run goes on."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from accelerate import Accelerator

logger = logging.getLogger(__name__)


def installed_trackers(names: Sequence[str]) -> list[str]:
    """Those of the trackers whose package is there; the others are reported."""
    installed = [name for name in names if importlib.util.find_spec(name) is not None]
    for name in sorted(set(names) - set(installed)):
        logger.warning("tracker %r is not installed (pip install %s); going on without", name, name)
    return installed


class Trackers:
    """Sends metrics to accelerate's trackers, if any were asked for.

    Args:
        accelerator: made with `log_with`.
        names: the trackers asked for.
        run_name: shown by them.
        settings: sent along, flat.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        names: Sequence[str],
        run_name: str,
        settings: Mapping[str, Any],
    ) -> None:
        self._accelerator = accelerator
        self._is_on = bool(names)
        if self._is_on:
            init = {"wandb": {"name": run_name}} if "wandb" in names else {}
            self._guard(
                "started",
                lambda: accelerator.init_trackers(
                    "mo-ddpo",
                    {k: str(v) if isinstance(v, tuple) else v for k, v in settings.items()},
                    init_kwargs=init,
                ),
            )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send one set of metrics."""
        if self._is_on:
            self._guard("written to", lambda: self._accelerator.log(dict(metrics), step=step))

    def close(self) -> None:
        """Finish the trackers."""
        if self._is_on:
            self._guard("closed", self._accelerator.end_training)

    def _guard(self, what: str, action: Any) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker does, training goes on
            self._is_on = False
            logger.warning(
                "a tracker could not be %s (%s); going on without, metrics.jsonl has everything",
                what,
                error,
            )
