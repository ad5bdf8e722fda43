"""Weight vectors: evenly spread over the simplex, or around a given one. Any number M."""

from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import ArrayLike

from morl.objectives import comparable
from morl.types import Array, Indices, frozen_vector

_MIN_POOL = 200  # lattice points from which spread-out subsets are taken


def normalise(values: ArrayLike) -> Array:
    """Scales a non-negative vector (M,) to sum 1. All weights are normalised here.

    Raises:
        ValueError: An entry is negative or not finite, or all are zero.

    Example:
        >>> normalise([1.0, 3.0])
        array([0.25, 0.75])
    """
    vector = frozen_vector("weights", values)
    if (vector < 0).any() or not vector.any():
        raise ValueError(f"weights={vector.tolist()} must be non-negative with a positive sum")
    return _sum_to_one(vector / vector.max())


def _sum_to_one(vector: Array) -> Array:
    """Divides by the sum and gives the rounding error to the largest entry."""
    weights = vector / vector.sum()
    for _ in range(3):
        weights[np.argmax(weights)] += 1.0 - weights.sum()
    return np.asarray(weights)


def simplex_lattice(num_divisions: int, num_objectives: int) -> Array:
    """All weight vectors whose entries are multiples of 1/num_divisions.

    Das and Dennis (1998): comb(h + M - 1, M - 1) points, ascending in the first entry.

    Example:
        >>> simplex_lattice(2, 2)
        array([[0. , 1. ],
               [0.5, 0.5],
               [1. , 0. ]])
    """
    num_bars = num_objectives - 1
    bars = np.array(list(combinations(range(num_divisions + num_bars), num_bars)))
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=(-1, num_divisions + num_bars))
    counts = np.diff(edges, axis=1) - 1
    return np.array([_sum_to_one(row) for row in counts / num_divisions])


def even_weights(num: int, num_objectives: int) -> Array:
    """Returns `num` weight vectors, spread evenly over the simplex and including its vertices.

    For M = 2 they are (i / (num - 1), 1 - i / (num - 1)). For M > 2 they are the Das-Dennis lattice
    that has exactly `num` points. If there is none, they are the vertices and then, one by one, the
    point of a fine lattice farthest from all points taken so far.

    Args:
        num: At least M.
        num_objectives: M >= 2.

    Returns:
        (num, M), rows non-negative with sum exactly 1.

    Raises:
        ValueError: `num` is smaller than M, or M smaller than 2.

    Example:
        >>> even_weights(3, 2)
        array([[0. , 1. ],
               [0.5, 0.5],
               [1. , 0. ]])
    """
    if num_objectives < 2 or num < num_objectives:
        raise ValueError(
            f"{num} weight vectors for {num_objectives} objectives: there must be at least two "
            "objectives and one weight vector for each; raise the number of agents or directions"
        )
    num_divisions = 1
    while (size := comb(num_divisions + num_objectives - 1, num_objectives - 1)) < num:
        num_divisions += 1
    if size == num:
        return simplex_lattice(num_divisions, num_objectives)
    pool = _pool(num_objectives, max(_MIN_POOL, 4 * num))
    vertices = np.flatnonzero(pool.max(axis=1) == 1.0)
    nearest = _squared_distances(pool[vertices], pool).min(axis=0)
    others = _farthest(pool, nearest[None], num - len(vertices))[0]
    return np.asarray(pool[np.concatenate([vertices, others])])


def weights_around_each(centres: Array, num: int, max_angle: float = np.pi / 4) -> list[Array]:
    """Candidate directions within `max_angle` (radians) of each weight vector, itself first.

    PGMORL (Xu et al. 2020) takes K directions within 45 degrees. Here each next direction is the
    point of a fine lattice on the simplex farthest from those before. The rule is the same for any
    M. It also gives K directions near the border, where a symmetric fan would lose half.

    Args:
        centres: (P, M), on the simplex.
        num: K >= 1.
        max_angle: Largest angle between a candidate and the centre.

    Returns:
        P times (at most num, M); fewer only where the cone holds fewer lattice points.

    Raises:
        ValueError: `num` or `max_angle` is not positive.

    Example:
        >>> weights_around_each(np.array([[0.0, 1.0]]), 3)[0].round(2)
        array([[0.  , 1.  ],
               [0.5 , 0.5 ],
               [0.25, 0.75]])
    """
    if num < 1 or not max_angle > 0:
        raise ValueError(f"num={num} and max_angle={max_angle} must be positive")
    pool = _pool(centres.shape[1], _MIN_POOL)
    norms = np.linalg.norm(centres, axis=1)[:, None] * np.linalg.norm(pool, axis=1)
    is_inside = centres @ pool.T / norms >= np.cos(max_angle) - 1e-12
    is_inside &= np.abs(centres[:, None] - pool).max(axis=2) > 1e-9
    nearest = np.where(is_inside, _squared_distances(centres, pool), -np.inf)
    chosen = _farthest(pool, nearest, num - 1)
    return [
        np.vstack([centre, pool[indices[:count]]])
        for centre, indices, count in zip(centres, chosen, is_inside.sum(axis=1), strict=True)
    ]


@lru_cache(maxsize=32)
def _pool(num_objectives: int, min_size: int) -> Array:
    """A lattice with at least `min_size` points that contains the vertices and the centre."""
    num_divisions = num_objectives
    while comb(num_divisions + num_objectives - 1, num_objectives - 1) < min_size:
        num_divisions += num_objectives
    return simplex_lattice(num_divisions, num_objectives)


def _farthest(points: Array, nearest: Array, num: int) -> Indices:
    """Takes `num` points for each of P rows, each the farthest from all points taken before.

    Args:
        points: (L, M), to take from.
        nearest: (P, L) squared distance of each point to the nearest one already taken; points with
            -inf are never taken.
        num: how many to take per row.

    Returns:
        (P, num) indices of the points.
    """
    taken = np.empty((len(nearest), num), dtype=np.intp)
    for i in range(num):
        taken[:, i] = nearest.argmax(axis=1)
        nearest = np.minimum(nearest, _squared_distances(points[taken[:, i]], points))
    return taken


def _squared_distances(first: Array, second: Array) -> Array:
    """Squared distances (P, L) of points (P, M) and (L, M): |p|^2 + |q|^2 - 2 p . q."""
    lengths = np.square(first).sum(axis=1)[:, None] + np.square(second).sum(axis=1)
    return comparable(lengths - 2 * first @ second.T)
