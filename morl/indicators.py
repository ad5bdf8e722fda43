"""Quality of a set of points in z-units: hypervolume, sparsity, expected utility. Any M.

The reference point is z = 0 throughout, and larger is better.
"""

import logging
from functools import lru_cache

import moocore
import numpy as np

from morl.pareto import non_dominated, weakly_dominates
from morl.types import Array

logger = logging.getLogger(__name__)


def hypervolume(points: Array) -> float:
    """Volume between the reference point and the points (n, M), by moocore's exact algorithm.

    A point that is not above the reference in every objective adds nothing. Rows with NaN are left
    out and logged.

    Example:
        >>> hypervolume(np.array([[1.0, 0.5], [0.5, 1.0], [-0.2, 2.0]]))
        0.75
    """
    points = _without_nan(points)
    return _volume(points[(points > 0).all(axis=1)])


def hypervolume_gains(front: Array, candidates: Array) -> Array:
    """How much each candidate alone would add to the hypervolume of `front`.

    A candidate p owns the box from the reference to p. The front already covers part of that box:
    the hypervolume of the front, cut off at p. So gain(p) = prod(p) - HV({min(q, p) : q in front}).

    Args:
        front: (n, M).
        candidates: (C, M).

    Returns:
        (C,), zero for candidates that are dominated or not above the reference.

    Example:
        >>> hypervolume_gains(np.array([[1.0, 0.5]]), np.array([[0.5, 1.0], [0.9, 0.4]]))
        array([0.25, 0.  ])
    """
    front, gains = _without_nan(front), np.zeros(len(candidates))
    front = front[(front > 0).all(axis=1)]
    is_covered = weakly_dominates(front, candidates[:, None]).any(axis=1)
    rows = np.flatnonzero((candidates > 0).all(axis=1) & ~is_covered)
    if len(front) > 0 and len(rows) > 0:
        volume, losses = _volume_of_losses(front.shape[1]), -front
        covered = [volume(np.maximum(losses, loss)) for loss in -candidates[rows]]
        gains[rows] = candidates[rows].prod(axis=1) - covered
    else:
        gains[rows] = candidates[rows].prod(axis=1)
    return np.maximum(gains, 0.0)


def sparsity(points: Array) -> float:
    """Mean squared gap between neighbours of the non-dominated points (n, M).

    Sparsity of PGMORL (Xu et al. 2020): 1/(n-1) sum_j sum_i (S_j(i) - S_j(i+1))^2, where S_j holds
    the sorted values of objective j. It is 0 for a single point. Equal points count once.

    Example:
        >>> sparsity(np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.1, 0.1]]))
        0.5
    """
    front = np.unique(points[non_dominated(points)], axis=0)
    gaps = np.diff(np.sort(front, axis=0), axis=0)
    return float(np.square(gaps).sum() / max(len(front) - 1, 1))


def sparsities_with(front: Array, candidates: Array) -> Array:
    """Sparsity of `front` after inserting each candidate alone, for all candidates together.

    Args:
        front: (n, M), mutually non-dominated, no two equal.
        candidates: (C, M), none dominated by the front or equal to a member.

    Returns:
        (C,), each equal to `sparsity` of the front with that candidate.
    """
    leaves = weakly_dominates(candidates[:, None], front)
    squares = np.zeros(len(candidates))
    for j in range(front.shape[1]):
        own = candidates[:, j, None]
        values = np.where(leaves, own, front[:, j])  # a leaving point moves onto it: no gap
        gaps = np.diff(np.sort(np.concatenate([values, own], axis=1), axis=1), axis=1)
        squares += np.square(gaps).sum(axis=1)
    return np.asarray(squares / np.maximum(len(front) - leaves.sum(axis=1), 1))


def expected_utility(points: Array, weights: Array) -> float:
    """Mean over users w (W, M) of their best utility, the maximum over points (n, M) of w . z.

    Zintgraf et al. (2015), with linear utilities.

    Example:
        >>> expected_utility(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.5, 0.5]]))
        0.75
    """
    return float((weights @ points.T).max(axis=1).mean())


def _volume(points: Array) -> float:
    """Hypervolume of points (n, M) that are all above the reference."""
    return float(_volume_of_losses(points.shape[1])(-points)) if len(points) > 0 else 0.0


@lru_cache(maxsize=8)
def _volume_of_losses(num_objectives: int) -> moocore.Hypervolume:
    """Moocore's hypervolume of losses: it minimises, and flipping signs itself is slower."""
    return moocore.Hypervolume(np.zeros(num_objectives))


def _without_nan(points: Array) -> Array:
    bad = np.isnan(points).any(axis=1)
    if bad.any():
        logger.warning("%d of %d points hold NaN and are left out", int(bad.sum()), len(points))
    return points[~bad]
