"""Past improvements: the data of the prediction model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from morl.objectives import to_z
from morl.types import (
    Array,
    Objective,
    Offspring,
    PolicyId,
    Record,
    frozen_vector,
    frozen_weights,
    stack,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Improvement(Record):
    """One task and its result.

    `before` and `after` (M,) are the evaluations of parent and child in raw units. `horizon` is the
    number of iterations between them.
    """

    parent: PolicyId
    child: PolicyId
    weights: Array
    before: Array
    after: Array
    horizon: int
    generation: int

    def __post_init__(self) -> None:
        """Checks and freezes the vectors.

        Raises:
            ValueError: A vector is malformed or the horizon is not positive.
        """
        weights = frozen_weights("weights", self.weights)
        self._set(
            weights=weights,
            before=frozen_vector("before", self.before, weights.size),
            after=frozen_vector("after", self.after, weights.size),
        )
        if self.horizon < 1:
            raise ValueError(f"horizon={self.horizon} of {self.child} must be at least 1 iteration")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Changes:
    """R improvements in z-units: `before` (R, M), `weights` (R, M), `change` (R, M)."""

    before: Array
    weights: Array
    change: Array


class History:
    """All improvements of a run. Each must start from its parent's evaluation."""

    def __init__(self, base: Offspring) -> None:
        self._returns: dict[PolicyId, Array] = {base.policy: base.returns}
        self._records: list[Improvement] = []
        self._tried: dict[PolicyId, list[Array]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Improvement]:
        return iter(self._records)

    def __contains__(self, policy: object) -> bool:
        return policy in self._returns

    def returns(self, policy: PolicyId) -> Array:
        """The evaluation (M,) of a known policy, raw units."""
        return self._returns[policy]

    def introduce(self, offspring: Offspring) -> None:
        """Makes a blended policy, which was not trained, a possible parent.

        Raises:
            ValueError: The policy is known already.
        """
        if offspring.policy in self._returns:
            raise ValueError(f"policy={offspring.policy!r} was evaluated before; name each once")
        self._returns[offspring.policy] = offspring.returns

    def add(self, record: Improvement) -> None:
        """Appends an improvement; its child becomes a possible parent.

        Raises:
            ValueError: The parent is unknown, `before` is not the parent's evaluation, or the child
                is known already.
        """
        if record.parent not in self._returns:
            raise ValueError(
                f"parent={record.parent!r} of {record.child} was never evaluated; "
                "an improvement starts from a policy that was told before"
            )
        known = self._returns[record.parent]
        if not np.array_equal(known, record.before):
            raise ValueError(
                f"before={record.before.tolist()} of {record.child} must be the "
                f"evaluation of its parent {record.parent}, {known.tolist()}"
            )
        if record.child in self._returns:
            raise ValueError(f"child={record.child!r} was evaluated before; name every policy once")
        self._returns[record.child] = record.after
        self._tried.setdefault(record.parent, []).append(record.weights)
        self._records.append(record)

    def tried(self, policy: PolicyId, num_objectives: int) -> Array:
        """The weights (n, M) along which `policy` has already been improved."""
        return stack(self._tried.get(policy, []), num_objectives)

    def changes(self, objectives: Sequence[Objective], horizon: int) -> Changes:
        """All improvements over `horizon` iterations, in z-units.

        Other horizons are left out: their steps are of a different length.
        """
        records = [record for record in self._records if record.horizon == horizon]
        num = len(objectives)
        before = to_z(stack([record.before for record in records], num), objectives)
        after = to_z(stack([record.after for record in records], num), objectives)
        weights = stack([record.weights for record in records], num)
        return Changes(before=before, weights=weights, change=after - before)

    def to_json(self) -> list[dict[str, Any]]:
        """The improvements in order, as JSON."""
        return [record.to_json() for record in self._records]
