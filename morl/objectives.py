"""Raw returns and z-units: z = (f - reference) / (ideal - reference), per objective.

All geometry of the search (dominance, hypervolume, buffers, neighbourhoods) lives in z. So the unit
of a reward, or a constant added to it, changes no decision.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from morl.types import Array, Objective, Offspring, stack

# z and the values of choices are rounded to this many decimals. That is far below any evaluation
# noise and far above rounding errors, so kilobytes and bytes break ties in the same way.
_Z_DECIMALS = 12
# |z| is cut off here, so that volumes and squares stay finite.
_Z_LIMIT = 1e6
_CHOICE_DECIMALS = 9


def check_objectives(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    """Returns the objectives as a tuple.

    Raises:
        ValueError: There are fewer than two, or two share a name.
    """
    names = [objective.name for objective in objectives]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"objectives={names} must be at least two with distinct names")
    return tuple(objectives)


def _points(objectives: Sequence[Objective]) -> tuple[Array, Array]:
    reference = np.array([objective.reference for objective in objectives])
    return reference, np.array([objective.ideal for objective in objectives]) - reference


def to_z(returns: ArrayLike, objectives: Sequence[Objective]) -> Array:
    """Turns raw returns (..., M), any finite numbers, into z; |z| is at most a million.

    Example:
        >>> size = Objective(name="size", unit="kB", reference=-120.0, ideal=-20.0)
        >>> to_z([-70.0, -120.0], [size, size])
        array([0.5, 0. ])
    """
    reference, scale = _points(objectives)
    with np.errstate(over="ignore"):
        z = (np.asarray(returns, dtype=np.float64) - reference) / scale
    return np.asarray(np.round(np.clip(z, -_Z_LIMIT, _Z_LIMIT), _Z_DECIMALS), dtype=np.float64)


def from_z(z: ArrayLike, objectives: Sequence[Objective]) -> Array:
    """Turns z (..., M) into raw returns: the inverse of `to_z`."""
    reference, scale = _points(objectives)
    return np.asarray(reference + np.asarray(z, dtype=np.float64) * scale)


def error_to_z(std_error: ArrayLike, objectives: Sequence[Objective]) -> Array:
    """Scales raw standard errors (..., M) to z-units; the reference does not shift them."""
    _, scale = _points(objectives)
    with np.errstate(over="ignore"):
        z = np.asarray(std_error, dtype=np.float64) / scale
    return np.asarray(np.round(np.minimum(z, _Z_LIMIT), _Z_DECIMALS), dtype=np.float64)


def returns_in_z(members: Sequence[Offspring], objectives: Sequence[Objective]) -> Array:
    """Normalised returns (n, M) of `members`."""
    return to_z(stack([member.returns for member in members], len(objectives)), objectives)


def comparable(values: ArrayLike) -> Array:
    """Rounds the values that decide a choice, so that ties in exact arithmetic stay ties.

    Example:
        >>> int(np.argmax(comparable([0.3, 0.1 + 0.2])))
        0
    """
    return np.asarray(np.round(np.asarray(values, dtype=np.float64), _CHOICE_DECIMALS))
