"""The prediction model of PGMORL (Xu et al. 2020): from the weights of a task to its improvement.

For each policy and objective, the change of the return is a saturating function of the weight x on
that objective:

    f(x) = A (exp(a (x - b)) - 1) / (exp(a (x - b)) + 1) + c  =  A tanh(a (x - b) / 2) + c.

It is fitted to past improvements that started nearby. Everything is in z-units.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from morl.history import Changes
from morl.objectives import comparable
from morl.types import Array, Indices, Mask

# Grid of the fit, (a, b) in standard deviations of the weights seen. It is coarse, so that a dozen
# noisy improvements are not overfitted. With the first, tiny `a` the curve bends by less than a
# millionth over the data: this is the straight line.
_LINE = (1e-3, 0.0)
_GRID = np.array([_LINE, *product((0.5, 1.0, 2.0, 4.0), np.linspace(-1.5, 1.5, 7))])

NUM_NEIGHBOURS = 12  # improvements that a fit uses: three for each of its parameters
MIN_WEIGHTS_TANH = 4  # a tanh has four parameters
_SAME_WEIGHTS = 1e-5  # distance below which two weight vectors count as one
_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """Predicted changes (C, M) in z for C tasks, and the kind of model used for each parent.

    The kind depends on the number of distinct weights, in the objective that has fewest: "tanh"
    (four or more), "linear" (two or three), "mean" (one), "none" (no improvement is known; the
    change is 0).
    """

    changes: Array
    kinds: tuple[str, ...]


def predict_changes(
    history: Changes,
    parents: Array,
    owner: Indices,
    weights: Array,
    num_neighbours: int = NUM_NEIGHBOURS,
) -> Prediction:
    """Predicts tasks from the nearest improvements, with one fit per policy and objective.

    A fit uses the `num_neighbours` improvements that started nearest to the parent, weighted by
    their Gaussian closeness. Weights and changes are standardised first, so that no constant
    depends on a scale. The fit is the best over a grid of (a, b), with (A, c) in closed form.
    A >= 0: more weight on an objective is never expected to harm it.

    Args:
        history: R past improvements.
        parents: (P, M) returns of the policies to improve.
        owner: (C,) index into `parents` for each task.
        weights: (C, M) weights of each task.
        num_neighbours: How many improvements a fit may use, at least 1.

    Raises:
        ValueError: `num_neighbours` is not positive.
    """
    if num_neighbours < 1:
        raise ValueError(f"num_neighbours={num_neighbours} must be at least 1")
    if len(history.before) == 0:
        return Prediction(changes=np.zeros(weights.shape), kinds=("none",) * len(parents))
    nearest, closeness = neighbours(history.before, parents, num_neighbours)
    changes = np.empty(weights.shape)
    fewest = np.full(len(parents), len(history.before))
    for j in range(weights.shape[1]):
        x, y = history.weights[nearest, j], history.change[nearest, j]
        distinct = num_distinct(x[..., None])
        fewest = np.minimum(fewest, distinct)
        parameters = fit_saturating(x, y, closeness, distinct < MIN_WEIGHTS_TANH)
        changes[:, j] = saturating(weights[:, j], parameters[owner])
    kinds = tuple("mean" if n < 2 else "linear" if n < MIN_WEIGHTS_TANH else "tanh" for n in fewest)
    return Prediction(changes=changes, kinds=kinds)


def neighbours(before: Array, parents: Array, num: int) -> tuple[Indices, Array]:
    """The nearest starting points of each parent, and how much each counts.

    Args:
        before: (R, M) where past improvements started, R >= 1.
        parents: (P, M).
        num: k = min(num, R) are returned.

    Returns:
        Indices (P, k), nearest first, earlier first among equals. Closeness (P, k) in (0, 1]:
        exp(-(d / s)^2 / 2), where s is half the distance to the farthest of the k.
    """
    distance = np.linalg.norm(parents[:, None] - before[None], axis=2)
    nearest = np.argsort(comparable(distance), axis=1, kind="stable")[:, :num]
    d = np.take_along_axis(distance, nearest, axis=1)
    scale = np.maximum(d.max(axis=1, keepdims=True) / 2, _TINY)
    return nearest, np.exp(-0.5 * np.square(d / scale))


def num_distinct(weights: Array) -> Indices:
    """How many different weight vectors there are among the rows (..., n, M).

    Example:
        >>> int(num_distinct(np.array([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])))
        2
    """
    distance = np.linalg.norm(weights[..., :, None, :] - weights[..., None, :, :], axis=-1)
    is_repeat = np.tril(distance < _SAME_WEIGHTS, k=-1).any(axis=-1)
    return np.asarray((~is_repeat).sum(axis=-1))


def saturating(x: Array, parameters: Array) -> Array:
    """The model A tanh(a (x - b) / 2) + c, for parameters (..., 4) = (A, a, b, c).

    Example:
        >>> saturating(np.array([0.5, 100.0]), np.array([2.0, 1.0, 0.5, 1.0]))
        array([1., 3.])
    """
    amplitude, a, b, c = np.moveaxis(parameters, -1, 0)
    return np.asarray(amplitude * np.tanh(a * (x - b) / 2) + c)


def fit_saturating(x: Array, y: Array, closeness: Array, is_linear: Mask) -> Array:
    """Fits the saturating function to one objective, for P policies together.

    Args:
        x: (P, k) weights on this objective.
        y: (P, k) changes of it.
        closeness: (P, k) in (0, 1], how much each counts.
        is_linear: (P,) whether to fit a straight line.

    Returns:
        (P, 4): A >= 0, a, b, c of each policy. A is 0 where all weights are the same.
    """
    share = closeness / closeness.sum(axis=1, keepdims=True)
    x, x_mean, x_scale = _standardise(x, share)
    y, y_mean, y_scale = _standardise(y, share)
    basis = np.tanh(_GRID[:, 0, None] * (x[:, None] - _GRID[:, 1, None]) / 2)  # (P, grid, k)
    amplitude, offset, error = _least_squares(basis, y[:, None], share[:, None])
    error[is_linear, 1:] = np.inf
    best = comparable(error).argmin(axis=1)
    rows, (a, b) = np.arange(len(x)), _GRID[best].T
    return np.stack(
        [
            amplitude[rows, best] * y_scale,
            a / x_scale,
            x_mean + b * x_scale,
            y_mean + offset[rows, best] * y_scale,
        ],
        axis=1,
    )


def _standardise(values: Array, share: Array) -> tuple[Array, Array, Array]:
    """Values (P, k) minus their weighted mean, over their weighted standard deviation (or 1)."""
    mean = (share * values).sum(axis=1)
    centred = values - mean[:, None]
    scale = np.sqrt((share * np.square(centred)).sum(axis=1))
    scale = np.where(scale > 1e-9, scale, 1.0)
    return centred / scale[:, None], mean, scale


def _least_squares(basis: Array, y: Array, share: Array) -> tuple[Array, Array, Array]:
    """Weighted fit y ~ A basis + c over the last axis with A >= 0: (A, c, mean squared error)."""
    basis_mean, y_mean = (share * basis).sum(axis=-1), (share * y).sum(axis=-1)
    centred, residual = basis - basis_mean[..., None], y - y_mean[..., None]
    variance = (share * np.square(centred)).sum(axis=-1)
    covariance = (share * centred * residual).sum(axis=-1)
    amplitude = np.maximum(covariance, 0.0) / np.maximum(variance, _TINY)
    error = (share * np.square(residual)).sum(axis=-1) - amplitude * (
        2 * covariance - amplitude * variance
    )
    return amplitude, y_mean - amplitude * basis_mean, error
