"""Members of a front: its policies and their blends, with the guards' values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ddpo.files import ADAPTER_FILE
from front.errors import FrontError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from morl.types import Array, PolicyId

_SLOT = "front"  # the adapter name under which a policy is loaded into a pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Something that policies should keep, though nothing trains it; see docs/guards.md.

    Attributes:
        name: unique within a run.
        unit: of its values.
        max_drop: how far below the base model's value a policy may be; None for no limit.
    """

    name: str
    unit: str
    max_drop: float | None

    def to_json(self) -> dict[str, Any]:
        """As `front.json` stores it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardValue:
    """A guard's value for a policy on the report set, and how far it is below the base model."""

    value: float
    std_error: float
    drop: float

    def to_json(self) -> dict[str, float]:
        """As `front.json` stores it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrontPolicy:
    """A policy on the published front.

    Attributes:
        id: its name in the run.
        parent: the policy it was trained from; None for the base model.
        generation: the one that made it; -1 for the base model.
        weights: (M,) it was trained along.
        returns: (M,) on the selection set, raw units.
        std_error: (M,) of `returns`.
        report_returns: (M,) on the report set, raw units: the published numbers.
        report_std_error: (M,) of `report_returns`.
        adapter: folder of its LoRA adapter, in diffusers' format.
        guards: by name; empty in a run without guards.
    """

    id: PolicyId
    parent: PolicyId | None
    generation: int
    weights: Array
    returns: Array
    std_error: Array
    report_returns: Array
    report_std_error: Array
    adapter: Path
    guards: Mapping[str, GuardValue] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[tuple[FrontPolicy, float], ...]:
        """The policy itself, at full strength: a blend of one."""
        return ((self, 1.0),)

    @property
    def size_bytes(self) -> int:
        """Size of the adapter on disk.

        Raises:
            FrontError: if the adapter is missing.
        """
        return self.file.stat().st_size

    @property
    def file(self) -> Path:
        """The adapter's safetensors file.

        Raises:
            FrontError: if it is missing.
        """
        path = self.adapter / ADAPTER_FILE
        if not path.is_file():
            raise FrontError(
                f"the adapter of {self.id} is missing: {path}; copy the run's whole adapters/ "
                "folder along with front.json"
            )
        return path

    def apply(self, pipe: Any, name: str = _SLOT) -> None:
        """Make a plain diffusers pipeline draw as this policy.

        Args:
            pipe: with the base model that the run was trained on.
            name: adapter slot in the pipeline. What an earlier call put there is replaced; other
                adapters stay loaded, and inactive.

        Raises:
            FrontError: if the adapter is missing, damaged, or made for another model.
        """
        _apply(self, pipe, name)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blend:
    """A combination of policies: their weight updates dW, added with coefficients of sum 1.

    Attributes:
        id: its name in `front.json`, or a name made from the parts.
        parts: the policies and their coefficients, which sum to 1.
        weights: (M,) the preference it stands for.
        report_returns: (M,) measured on the report set, raw units; None if nobody measured.
        report_std_error: (M,) of `report_returns`, or None.
        guards: by name; empty where they were not measured.
    """

    id: str
    parts: tuple[tuple[FrontPolicy, float], ...]
    weights: Array
    report_returns: Array | None = None
    report_std_error: Array | None = None
    guards: Mapping[str, GuardValue] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: tuple[tuple[FrontPolicy, float], ...], weights: Array) -> Blend:
        """The blend of these parts; one policy alone is as good as it was measured to be."""
        name = "-".join(f"{policy.id}-{round(1000 * part):04d}" for policy, part in parts)
        (policy, _), *others = parts
        return cls(
            id=f"blend-{name}",
            parts=parts,
            weights=weights,
            report_returns=None if others else policy.report_returns,
            report_std_error=None if others else policy.report_std_error,
        )

    def apply(self, pipe: Any, name: str = _SLOT) -> None:
        """Make a plain diffusers pipeline draw as this blend; see `FrontPolicy.apply`."""
        _apply(self, pipe, name)


def _apply(member: FrontPolicy | Blend, pipe: Any, name: str) -> None:
    from ddpo.agents.adapter import Adapter  # noqa: PLC0415 - imports torch

    Adapter.of(member).apply(pipe, name)
