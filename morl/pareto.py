"""Dominance and the archive of all non-dominated policies found so far: the result of a run."""

import logging
from collections.abc import Iterable, Sequence

import moocore
import numpy as np

from morl.objectives import check_objectives, error_to_z, to_z
from morl.types import Array, Mask, Objective, Offspring

logger = logging.getLogger(__name__)

# Two evaluations count as the same reading below this many standard errors of their difference.
# Policies share prompts and noise: at a correlation of 0.8, the standard error of a paired
# difference is 0.45 times the one for independent readings.
DUPLICATE_STD_ERRORS = 0.5
_ROUNDING = 1e-9  # in z: equal up to rounding, for evaluations without noise


def weakly_dominates(first: Array, second: Array) -> Mask:
    """Whether `first` is at least as good as `second` in every objective; (..., M) broadcast.

    Example:
        >>> weakly_dominates(np.array([1.0, 0.5]), np.array([[1.0, 0.5], [0.0, 0.6]]))
        array([ True, False])
    """
    each = [first[..., j] >= second[..., j] for j in range(first.shape[-1])]
    return np.asarray(np.logical_and.reduce(each))


def non_dominated(points: Array) -> Mask:
    """Which points (n, M) no other point dominates (as good everywhere, better somewhere).

    Larger is better. Equal points are all kept.

    Raises:
        ValueError: A coordinate is not a number.

    Example:
        >>> non_dominated(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]]))
        array([ True,  True, False])
    """
    if np.isnan(points).any():
        raise ValueError(
            f"{int(np.isnan(points).any(axis=1).sum())} of {len(points)} points "
            "hold NaN, which neither dominates nor is dominated; drop them first"
        )
    if len(points) == 0:
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(moocore.is_nondominated(points, maximise=True, keep_weakly=True))


def same_reading(first: Offspring, second: Offspring, objectives: Sequence[Objective]) -> bool:
    """Whether two evaluations differ by less than their noise in every objective.

    The rule is |f1 - f2| <= 0.5 sqrt(e1^2 + e2^2) for each objective, with standard errors e.
    """
    z = [to_z(each.returns, objectives) for each in (first, second)]
    error = [error_to_z(each.std_error, objectives) for each in (first, second)]
    return bool(_is_same(z[0], error[0], z[1], error[1]))


def _is_same(z: Array, error: Array, other_z: Array, other_error: Array) -> Mask:
    """`same_reading` of returns and standard errors in z; (..., M) broadcast."""
    gap, noise = np.abs(z - other_z), np.hypot(error, other_error)
    return np.asarray((gap <= DUPLICATE_STD_ERRORS * noise + _ROUNDING).all(axis=-1))


class ParetoArchive:
    """The non-dominated policies; of policies with the same reading (`same_reading`), the first.

    A newcomer is refused if a member is at least as good everywhere. It is also refused if it is
    the same reading as a member it does not dominate: the earlier one stays, not the luckier one.
    Otherwise it enters, and the members it dominates leave. So the archive's hypervolume never
    falls. Points below the reference point are kept too.

    Attributes:
        members: In the order in which they entered.
        num_duplicates: Newcomers refused as another reading of a member.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = check_objectives(objectives)
        self.members: tuple[Offspring, ...] = ()
        self.num_duplicates = 0
        self._z: Array = np.empty((0, len(self._objectives)))  # of the members, as are
        self._error: Array = np.empty((0, len(self._objectives)))  # their standard errors

    def add(self, batch: Iterable[Offspring]) -> None:
        """Offers policies. A batch is taken in order of names, so its own order does not matter."""
        for newcomer in sorted(batch, key=lambda offspring: offspring.policy):
            self._offer(newcomer)

    def _offer(self, newcomer: Offspring) -> None:
        z = to_z(newcomer.returns, self._objectives)
        error = error_to_z(newcomer.std_error, self._objectives)
        if weakly_dominates(self._z, z).any():
            return
        stays = ~weakly_dominates(z, self._z)
        same = np.flatnonzero(stays & _is_same(z, error, self._z, self._error))
        if len(same) > 0:
            self.num_duplicates += 1
            logger.info(
                "%s is within evaluation noise of %s: not archived (%d so far)",
                newcomer.policy,
                self.members[same[0]].policy,
                self.num_duplicates,
            )
            return
        kept = (self.members[i] for i in np.flatnonzero(stays))
        self.members = (*kept, newcomer)
        self._z = np.vstack([self._z[stays], z])
        self._error = np.vstack([self._error[stays], error])
