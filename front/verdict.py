"""A front in words: which members improve everything, and which lose their subject."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from front.labels import Label

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from front.member import Guard, GuardValue
    from front.record import BaseRecord, BlendRecord, PolicyRecord
    from morl.types import Array, Objective

_CLEAR = 2.0  # standard errors that a gain must exceed
_KEPT = 0.8  # of the base model's value: below it the subject is being lost
# Rewards that say whether a picture shows its prompt, and are near 0 where it has nothing of it.
_SUBJECT = frozenset({"clip_alignment", "clip_score"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gain:
    """What a member gains over the base model.

    Attributes:
        value: (M,) raw units.
        std_error: (M,) of `value`.
    """

    value: Array
    std_error: Array

    @classmethod
    def published(cls, entry: PolicyRecord | BlendRecord, base: BaseRecord) -> Gain:
        """As measured picture by picture; the error, where known, is for other prompts, too."""
        error = entry.gain_std_error_by_prompt
        if error is None:
            error = entry.gain_std_error
        if entry.gain_over_base is not None and error is not None:
            return cls(value=entry.gain_over_base, std_error=error)
        return cls.unpaired(
            (entry.report_returns, entry.report_std_error),
            (base.report_returns, base.report_std_error),
        )

    @classmethod
    def unpaired(cls, returns: tuple[Array, Array], base: tuple[Array, Array]) -> Gain:
        """Of returns (M,) and their errors, as if the pictures had other noise: a larger error."""
        return cls(value=returns[0] - base[0], std_error=np.hypot(returns[1], base[1]))

    @property
    def is_everywhere(self) -> bool:
        """Whether it is above zero in every objective, by more than two standard errors."""
        return bool((self.value > _CLEAR * self.std_error).all())


def losses(
    returns: Array,
    base: Array,
    objectives: Sequence[Objective],
    guards: Sequence[Guard],
    values: Mapping[str, GuardValue],
) -> Iterator[str]:
    """The signs that a member is losing its subject, one sentence each.

    A guard says so below its limit; a measure of how true a picture is to its prompt, objective or
    guard, below four fifths of the base model's value.

    Args:
        returns: (M,) of the member.
        base: (M,) of the base model.
        objectives: M of them.
        guards: of the run.
        values: guard -> what it says of the member.
    """
    read: list[tuple[Objective | Guard, float, float, float | None]] = [
        (objective, value, before, None)
        for objective, value, before in zip(objectives, returns, base, strict=True)
    ]
    read += [
        (guard, own.value, own.value + own.drop, guard.max_drop)
        for guard in guards
        if (own := values.get(guard.name)) is not None
    ]
    for measure, value, before, limit in read:
        text = Label.of(measure).text
        if limit is not None:
            if before - value > limit:
                yield f"“{text}” is below its limit"
        elif measure.name in _SUBJECT and before > 0 and value < _KEPT * before:
            share = round(100 * max(value / before, 0))
            yield f"“{text}” is at {share} % of the base model's"
