"""The data of a plot of a front: policies with their returns on one evaluation set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from morl.types import BASE_POLICY
from morl.weights import even_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from front.member import Guard, GuardValue
    from front.record import FrontRecord
    from morl.types import Array, Objective, Offspring, PolicyId
    from run.records import SearchRecord


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredPolicy:
    """A policy and its returns on one evaluation set.

    Attributes:
        id: its name in the run.
        weights: (M,) it was trained along; even for the base model.
        returns: (M,) raw units.
        std_error: (M,) of `returns`.
        guards: by name.
    """

    id: PolicyId
    weights: Array
    returns: Array
    std_error: Array
    guards: Mapping[str, GuardValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrontView:
    """A front on one evaluation set.

    Attributes:
        objectives: M of them.
        policies: from the lowest to the highest return in the first objective.
        base: the base model.
        guards: what else was measured.
    """

    objectives: tuple[Objective, ...]
    policies: tuple[MeasuredPolicy, ...]
    base: MeasuredPolicy
    guards: tuple[Guard, ...] = ()

    @classmethod
    def of_front(cls, front: FrontRecord) -> FrontView:
        """A published front, on the report set."""
        policies = (
            MeasuredPolicy(
                id=policy.id,
                weights=policy.weights,
                returns=policy.report_returns,
                std_error=policy.report_std_error,
                guards=policy.guards,
            )
            for policy in front.policies
        )
        num = len(front.objectives)
        base = MeasuredPolicy(
            id=BASE_POLICY,
            weights=even_weights(num, num).mean(axis=0),
            returns=front.base.report_returns,
            std_error=front.base.report_std_error,
            guards=front.base.guards,
        )
        return cls(
            objectives=front.objectives,
            policies=tuple(sorted(policies, key=_first)),
            base=base,
            guards=front.guards,
        )

    @classmethod
    def of_search(cls, search: SearchRecord) -> FrontView:
        """The archive of an unfinished search, on the selection set."""
        policies = map(_measured, search.archive)
        return cls(
            objectives=search.objectives,
            policies=tuple(sorted(policies, key=_first)),
            base=_measured(search.base),
        )


def _measured(policy: Offspring) -> MeasuredPolicy:
    return MeasuredPolicy(
        id=policy.policy,
        weights=policy.weights,
        returns=policy.returns,
        std_error=policy.std_error,
    )


def _first(policy: MeasuredPolicy) -> float:
    return float(policy.returns[0])
