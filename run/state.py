"""The part of a checkpoint that is neither policies nor search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddpo.calibration import Calibration
from morl.types import PolicyId
from run.records import Costs, CurvePoint

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Counters, measurements and settings of a run.

    Attributes:
        settings: `Settings.to_json()` of the program that wrote it, to be compared with today's.
        calibration: of the base model.
        costs: so far.
        curve: a point for the base model and for each generation.
        warmup_archive: the archive as it stood after the warm-up.
        prompts: role -> digest of its prompts; without roles that an older program did not check.
        metrics_bytes: length of `metrics.jsonl`.
    """

    settings: Mapping[str, Any]
    calibration: Calibration
    costs: Costs
    curve: tuple[CurvePoint, ...]
    warmup_archive: tuple[PolicyId, ...]
    prompts: Mapping[str, str]
    metrics_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As the checkpoint stores it."""
        return {
            "settings": dict(self.settings),
            "calibration": self.calibration.to_json(),
            "costs": self.costs.to_json(),
            "curve": [list(point) for point in self.curve],
            "warmup_archive": list(self.warmup_archive),
            "prompts": dict(self.prompts),
            "metrics_bytes": self.metrics_bytes,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunState:
        """The inverse of `to_json`; entries of older programs that nothing needs are dropped.

        Raises:
            KeyError: if an entry is missing.
            TypeError: if one has another form.
        """
        return cls(
            settings=data["settings"],
            calibration=Calibration.from_json(data["calibration"]),
            costs=Costs(**data["costs"]),
            curve=tuple(CurvePoint(images, volume) for images, volume in data["curve"]),
            warmup_archive=tuple(PolicyId(name) for name in data["warmup_archive"]),
            prompts=data.get("prompts", {}),
            metrics_bytes=data["metrics_bytes"],
        )
