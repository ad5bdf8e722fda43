"""Which policies to blend, in what proportion, and how good a blend is: geometry in z-units. Any M.

Rewarded soups (Rame et al. 2023) average the weights of networks tuned for different rewards; here
neighbours on the front are averaged, which lie closer together than its ends do.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import linprog

from morl.objectives import comparable
from morl.weights import simplex_lattice

if TYPE_CHECKING:
    from morl.types import Array, Indices

_DIVISIONS = {2: 1000, 3: 60, 4: 24}  # of the lattice of preferences, by M: some 2,000 points
_FEWEST_DIVISIONS = 12
_NEGLIGIBLE = 1e-6  # a coefficient below this is rounding


def neighbours(z: Array) -> list[tuple[int, int]]:
    """Pairs of points between which no third one lies: the edges of the Gabriel graph.

    k lies between i and j where the angle i-k-j is obtuse. On a front of two objectives these are
    exactly the consecutive points.

    Args:
        z: (n, M), mutually non-dominated.

    Example:
        >>> neighbours(np.array([[0.0, 1.0], [0.6, 0.7], [1.0, 0.0]]))
        [(0, 1), (1, 2)]
    """
    to_others = z[None, :, :] - z[:, None, :]  # [k, i] = z_i - z_k
    inner = np.einsum("kim,kjm->kij", to_others, to_others)
    is_between = np.any(comparable(inner) < 0, axis=0)
    n = len(z)
    return [(i, j) for i in range(n) for j in range(i + 1, n) if not is_between[i, j]]


def coefficients(z: Array, weights: Array) -> Array:
    """Coefficient of each policy in the blend that stands for a preference.

    A policy has one anchor or more: the centre of the preferences under which it has the largest
    w . z, and every vertex of the simplex where it has. Of all convex combinations of anchors that
    equal the preference, the one with the least spread around it is taken. Its anchors span the
    simplex of their Delaunay triangulation that holds the preference, so it is found as the lower
    hull of the lifted points.

    Args:
        z: (n, M) returns of the policies.
        weights: (M,) the preference, on the simplex.

    Returns:
        (n,) non-negative, sum 1, at most M not zero.

    Example:
        >>> z = np.array([[0.0, 1.0], [0.8, 0.8], [1.0, 0.0]])
        >>> coefficients(z, np.array([0.5, 0.5])).round(2)
        array([0., 1., 0.])
        >>> coefficients(z, np.array([0.9, 0.1])).round(2)
        array([0., 0., 1.])
        >>> coefficients(z, np.array([0.7, 0.3])).round(2)
        array([0. , 0.5, 0.5])
    """
    anchors, owners = _anchors(z)
    spread = np.square(anchors - weights).sum(axis=1)
    solution = linprog(spread, A_eq=anchors.T, b_eq=weights, bounds=(0, None), method="highs-ds")
    found = np.zeros(len(z))
    np.add.at(found, owners, solution.x)
    found[found < _NEGLIGIBLE] = 0.0
    return np.asarray(found / found.sum())


def affine_coefficients(anchors: Array, weights: Array) -> Array | None:
    """Coefficients, of either sign, with which anchors add up to a weight vector.

    Any quantity that is affine in the weights then adds up to its value there with the same
    coefficients. The update of a conditioned family's members is one.

    Args:
        anchors: (n, M) weight vectors, each of sum 1.
        weights: (M,) of sum 1.

    Returns:
        (n,) of sum 1, at most M not zero, those near `weights` rather than others; None where the
        anchors cannot reach it.

    Example:
        >>> anchors = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
        >>> affine_coefficients(anchors, np.array([0.3, 0.7])).round(2)
        array([0.4, 0.6, 0. ])
        >>> affine_coefficients(anchors[:2], np.array([1.0, 0.0])).round(2)
        array([-1.,  2.])
        >>> affine_coefficients(anchors[:1], np.array([1.0, 0.0])) is None
        True
    """
    spread = np.square(anchors - weights).sum(axis=1)
    signed = np.hstack([anchors.T, -anchors.T])
    solution = linprog(np.tile(spread, 2), A_eq=signed, b_eq=weights, method="highs-ds")
    if solution.x is None:
        return None
    above, below = np.split(solution.x, 2)
    found = above - below
    found[np.abs(found) < _NEGLIGIBLE] = 0.0
    return np.asarray(found / found.sum())


def _anchors(z: Array) -> tuple[Array, Indices]:
    """Preferences (a, M) that policies stand for, and the owner (a,) of each."""
    preferences = _preferences(z.shape[1])
    best = comparable(preferences @ z.T).argmax(axis=1)
    vertices = np.flatnonzero(preferences.max(axis=1) == 1.0)
    owners = np.unique(best)
    centres = [preferences[best == owner].mean(axis=0) for owner in owners]
    return np.vstack([preferences[vertices], *centres]), np.concatenate([best[vertices], owners])


@lru_cache(maxsize=4)
def _preferences(num_objectives: int) -> Array:
    divisions = _DIVISIONS.get(num_objectives, _FEWEST_DIVISIONS)
    return simplex_lattice(divisions, num_objectives)


class Height(NamedTuple):
    """Where a blend lies against the chord between its two parts.

    Attributes:
        value: z-units; positive above the chord, negative below.
        position: where on the chord the comparison is made: 0 at the first part, 1 at the second.
        weights: (M,) on the simplex, so that value = weights . (blend - chord(position)).
    """

    value: float
    position: float
    weights: Array


def height_above_chord(blend: Array, first: Array, second: Array) -> Height:
    """How far a blend lies above the chord: max over the chord of the worst objective's excess.

    Above 0 the blend beats some point of the chord in every objective; at -h every objective must
    be raised by h before it reaches the chord.

    Args:
        blend: (M,) returns of the blend.
        first: (M,) of one part.
        second: (M,) of the other, neither dominating the other.

    Example:
        >>> height_above_chord(np.array([0.6, 0.6]), np.array([0.0, 1.0]), np.array([1.0, 0.0]))
        Height(value=0.1, position=0.5, weights=array([0.5, 0.5]))
    """
    # The candidates: both ends of the chord, and where the excesses in two objectives meet.
    start, slope = blend - first, second - first  # excess over chord(s) is start - s slope
    num = len(blend)
    places = [(s, np.eye(num)[np.argmin(start - s * slope)]) for s in (0.0, 1.0)]
    for i, j in combinations(range(num), 2):
        if slope[i] * slope[j] < 0:  # one excess rises as the other falls
            s = float((start[i] - start[j]) / (slope[i] - slope[j]))
            weights = np.zeros(num)
            weights[[i, j]] = np.abs(slope[[j, i]]) / np.abs(slope[[i, j]]).sum()
            if 0 <= s <= 1:
                places.append((s, weights))
    # The best of them; among equals a meeting, which comes later in the list.
    heights = [float((start - s * slope).min()) for s, _ in places]
    best = int(np.argmax(comparable(heights)[::-1]))
    position, weights = places[::-1][best]
    return Height(value=float(comparable(heights[::-1][best])), position=position, weights=weights)


def depth_of_corner(first: Array, second: Array) -> float:
    """How far below the chord the point with the worse of both parts in every objective lies.

    Example:
        >>> depth_of_corner(np.array([0.0, 1.0]), np.array([1.0, 0.0]))
        0.5
    """
    return -height_above_chord(np.minimum(first, second), first, second).value
