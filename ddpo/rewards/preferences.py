"""Which of two pictures does a person prefer? A Bradley-Terry model on features of both.

P(left over right) = sigmoid(w . (f_left - f_right)) (Bradley and Terry 1952), with a Gaussian prior
on w: logistic regression with a ridge and no constant. An answer "neither" counts as half a choice
for each side. This file only sees numbers: n answers, differences (n, D) of features, and choices
(n,), 1 for left, 0 for right and 0.5 for neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit
from scipy.stats import binomtest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

# In units of the mean squared length of a difference: 1 / sqrt(ridge) is how far apart, in logits,
# the prior expects the pictures of a pair to be.
_RIDGES = tuple(4.0**-k for k in range(-1, 5))
_MAX_FOLDS = 5
_FIRST = 8  # answers that are not predicted, for want of earlier ones
_MAX_STEPS = 50
_SMALL = 1e-6  # the last Newton step, in logits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """The posterior of w given the answers, as a Gaussian around its mode (Laplace).

    Attributes:
        weights: (D,), the mode of w.
        ridge: precision of the prior.
        basis: (D, r), orthonormal columns that span the differences.
        covariance: (r, r) of w in that basis; outside of it, the prior's covariance holds.
    """

    weights: Array
    ridge: float
    basis: Array
    covariance: Array

    def variance(self, features: Array) -> Array:
        """(n,) of the logits w . f, for features (n, D)."""
        inside = features @ self.basis
        outside = np.square(features).sum(axis=1) - np.square(inside).sum(axis=1)
        of_answers = ((inside @ self.covariance) * inside).sum(axis=1)
        variance: Array = of_answers + outside.clip(min=0) / self.ridge
        return variance


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How well choices are predicted by fits that did not see them.

    Attributes:
        num_choices: answers that were left or right.
        num_right: choices that were predicted correctly.
        p_value: the probability of that many or more by tossing coins.
        confidence: mean probability that was given to the side predicted. Calibrated predictions
            have the same `accuracy`.
    """

    num_choices: int
    num_right: int
    p_value: float
    confidence: float

    @property
    def accuracy(self) -> float:
        """The share of choices that were predicted correctly; 0.5 if there are no choices."""
        return self.num_right / self.num_choices if self.num_choices else 0.5


def fit(differences: Array, choices: Array) -> Fit:
    """The Bradley-Terry model of some answers, with the ridge that predicts best.

    The ridge minimises the log-loss of leave-one-out predictions (`_left_out`).

    Args:
        differences: (n, D) features of the left picture minus those of the right one.
        choices: (n,).

    Example:
        >>> found = fit(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), np.array([1.0, 1.0, 0.5]))
        >>> bool(found.weights[0] > 0), bool(abs(found.weights[1]) < 1e-9)
        (True, True)
    """
    _, lengths, rows = np.linalg.svd(differences, full_matrices=False)
    basis = rows[lengths > 1e-9 * max(lengths.max(initial=0.0), 1e-12)].T
    inside = differences @ basis
    scale = float(np.square(differences).sum(axis=1).mean()) if len(differences) else 0.0
    best, best_loss = None, np.inf
    weights = np.zeros(basis.shape[1])
    for ridge in _RIDGES:
        ridge *= scale or 1.0  # noqa: PLW2901 - from units of the data to those of w
        weights, covariance = _posterior(inside, choices, ridge, weights)
        loss = _log_loss(_left_out(inside, choices, weights, covariance), choices)
        if loss < best_loss:
            best, best_loss = (weights, ridge, covariance), loss
    assert best is not None  # the first ridge has a finite loss
    weights, ridge, covariance = best
    return Fit(weights=basis @ weights, ridge=ridge, basis=basis, covariance=covariance)


def held_out(differences: Array, choices: Array, groups: Sequence[int]) -> Array:
    """(n,) logits of each answer by a fit of other answers only: cross-validation.

    Every fold chooses its own ridge, so that an answer has no part in its own prediction.

    Args:
        differences: (n, D).
        choices: (n,).
        groups: n; answers of one group are left out together.
    """
    _, group = np.unique(np.asarray(groups, dtype=int), return_inverse=True)
    num_groups = int(group.max(initial=-1)) + 1
    folds = group % min(_MAX_FOLDS, max(num_groups, 1))
    logits = np.zeros(len(choices))
    if num_groups < 2:
        return logits
    for fold in range(folds.max() + 1):
        is_out = folds == fold
        logits[is_out] = differences[is_out] @ fit(differences[~is_out], choices[~is_out]).weights
    return logits


def ahead(differences: Array, choices: Array) -> Array:
    """(n,) logits of each answer by a fit of answers before it; 0 for the first ones.

    Answers stand in the order in which they were given. If a person tosses coins, the number of
    right predictions is then binomial, although earlier answers decided what was asked. In
    cross-validation it is not: there, answers predict each other (Dawid 1984, the prequential
    approach).
    """
    logits, known = np.zeros(len(choices)), _FIRST
    while known < len(choices):
        until = known + max(1, known // 5)  # a new fit for every fifth more
        weights = fit(differences[:known], choices[:known]).weights
        logits[known:until] = differences[known:until] @ weights
        known = until
    return logits


def check(logits: Array, choices: Array) -> Check:
    """How good held-out predictions are; the test is binomial and one-sided.

    Args:
        logits: (n,) of `held_out`.
        choices: (n,); "neither" is left out.

    Example:
        >>> found = check(np.array([2.0, -1.0, 3.0, 1.0]), np.array([1.0, 0.0, 0.0, 0.5]))
        >>> found.num_choices, found.num_right, found.p_value
        (3, 2, 0.5)
    """
    is_choice = choices != 0.5
    logits, left = logits[is_choice], choices[is_choice] > 0.5
    num_choices = len(logits)
    num_right = int(((logits > 0) == left)[logits != 0].sum())  # no prediction is a wrong one
    test = binomtest(num_right, num_choices, alternative="greater") if num_choices else None
    return Check(
        num_choices=num_choices,
        num_right=num_right,
        p_value=float(test.pvalue) if test else 1.0,
        confidence=float(expit(np.abs(logits)).mean()) if num_choices else 0.5,
    )


def information(fitted: Fit, differences: Array) -> Array:
    """(n,) how much an answer is expected to teach about w, in nats.

    It is the mutual information of w and an observation of the logit that is as precise as one
    choice: 1/2 log(1 + p (1 - p) Var[logit]) (MacKay 1992). It is large where the fit is unsure of
    both the choice and the logit. For a pair of nearly equal pictures, only the choice is unsure.
    """
    chance = expit(differences @ fitted.weights)
    information: Array = np.log1p(chance * (1 - chance) * fitted.variance(differences)) / 2
    return information


def _posterior(inside: Array, choices: Array, ridge: float, start: Array) -> tuple[Array, Array]:
    """Mode (r,) and covariance (r, r) of w for features (n, r), by Newton's method."""
    weights, identity = start, np.eye(inside.shape[1])

    def objective(weights: Array) -> float:
        loss = len(choices) * _log_loss(inside @ weights, choices)
        return float(loss + ridge / 2 * weights @ weights)

    value = objective(weights)
    for _ in range(_MAX_STEPS):
        # Newton's step from the loss and the ridge.
        chance = expit(inside @ weights)
        gradient = inside.T @ (chance - choices) + ridge * weights
        hessian = (inside.T * (chance * (1 - chance))) @ inside + ridge * identity
        covariance = np.linalg.inv(hessian)
        step = covariance @ gradient
        # Halved until it helps. The error after a small step is about the step's square.
        is_last = np.abs(inside @ step).max(initial=0.0) < _SMALL
        while not is_last and objective(weights - step) > value:
            step /= 2
        weights = weights - step
        if is_last:
            break
        value = objective(weights)
    return weights, covariance


def _left_out(inside: Array, choices: Array, weights: Array, covariance: Array) -> Array:
    """(n,) logits of each answer by the fit of all others, to first order.

    One Newton step from the fit of all (Rad and Maleki 2020, arXiv 1801.10243, eq. 8):

        x w + h g / (1 - h s)    with h = x Cov x

    Here g is the gradient and s the curvature of the answer's loss.
    """
    logits = inside @ weights
    chance = expit(logits)
    leverage = ((inside @ covariance) * inside).sum(axis=1)
    curvature = chance * (1 - chance)
    logits += leverage * (chance - choices) / (1 - leverage * curvature).clip(min=1e-9)
    return logits


def _log_loss(logits: Array, choices: Array) -> float:
    """Mean of -log P(choice) in nats."""
    return float((np.logaddexp(0, logits) - choices * logits).mean()) if len(logits) else 0.0
