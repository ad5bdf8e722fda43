"""PGMORL's prediction model as in its authors' code, for comparison.

The project's own model is `morl/prediction.py`; docs/evidence.md compares their results. This one
has three limits: its constants assume returns of hundreds, a neighbourhood relative to |f| is empty
where an objective is 0, and four distinct weights do not exist with three agents.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import least_squares

from morl.history import Changes
from morl.prediction import (
    MIN_WEIGHTS_TANH,
    Prediction,
    num_distinct,
    predict_changes,
    saturating,
)
from morl.types import Array, Indices

_THRESHOLD = 0.1  # relative distance within which an improvement started nearby
_SIGMA = 0.03  # width of its Gaussian weight
_MAX_DOUBLINGS = 20  # the authors' code doubles without limit, endlessly if an objective is 0
_F_SCALE = 20.0
_LOWER = (0.0, 0.1, -5.0, -500.0)  # A, a, b, c


def predict_as_the_authors(
    history: Changes, parents: Array, owner: Indices, weights: Array, num_neighbours: int
) -> Prediction:
    """Predicts tasks with the authors' neighbourhoods, constants and robust fit.

    A policy without such a neighbourhood falls back to `predict_changes`, and its kind says so.
    Arguments and result are as in `predict_changes`.
    """
    fallback = predict_changes(history, parents, owner, weights, num_neighbours)
    changes, kinds = fallback.changes.copy(), list(fallback.kinds)
    for p, parent in enumerate(parents):
        found = neighbours(history, parent)
        if found is None:
            continue
        rows, closeness = found
        mine = owner == p
        for j in range(weights.shape[1]):
            parameters = fit(history.weights[rows, j], history.change[rows, j], closeness)
            changes[mine, j] = saturating(weights[mine, j], parameters)
        kinds[p] = "authors"
    return Prediction(changes=changes, kinds=tuple(kinds))


def neighbours(history: Changes, parent: Array) -> tuple[Indices, Array] | None:
    """Improvements that started within a relative distance of `parent`, with Gaussian weights.

    The distance doubles, at most 20 times, until there are four distinct weights. None if that
    fails.
    """
    gap = np.abs(history.before - parent)
    for doubling in range(_MAX_DOUBLINGS + 1):
        factor = 2.0**doubling
        inside = (gap < np.abs(parent) * _THRESHOLD * factor).all(axis=1)
        rows = np.flatnonzero(inside)
        if num_distinct(history.weights[rows]) >= MIN_WEIGHTS_TANH:
            distance = np.linalg.norm(gap[rows] / np.abs(parent), axis=1)
            return rows, np.exp(-0.5 * np.square(distance / (_SIGMA * factor)))
    return None


def fit(x: Array, y: Array, closeness: Array) -> Array:
    """Soft-L1 fit of (A, a, b, c) to weights x (n,) and changes y (n,), as in the authors' code."""

    def residuals(p: Array) -> Array:
        return np.asarray((saturating(x, p) - y) * closeness)

    def jacobian(p: Array) -> Array:
        amplitude, a, b, _ = p
        t = np.tanh(a * (x - b) / 2)
        slope = amplitude * (1 - t**2) / 2
        columns = [t, slope * (x - b), -slope * a, np.ones_like(x)]
        return np.stack(columns, axis=1) * closeness[:, None]

    upper = (np.clip(np.ptp(y), 1.0, 500.0), 20.0, 5.0, 500.0)
    found = least_squares(
        residuals,
        np.ones(4),
        jac=jacobian,
        bounds=(_LOWER, upper),
        loss="soft_l1",
        f_scale=_F_SCALE,
    )
    return np.asarray(found.x)
