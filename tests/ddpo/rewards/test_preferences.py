"""The Bradley-Terry model, on numbers alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from ddpo.rewards import preferences
from ddpo.rewards.preferences import ahead, check, fit, held_out, information

RNG = np.random.default_rng


def answers(num, seed=0, dimensions=6, noise=0.0):
    """Differences of features on a sphere, choices of somebody who likes a direction, and that."""
    rng = RNG(seed)
    features = rng.normal(size=(num, 2, dimensions)) / np.arange(1, dimensions + 1) ** 0.5
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    differences, taste = features[:, 0] - features[:, 1], rng.normal(size=dimensions)
    logits = differences @ taste + noise * rng.logistic(size=num)
    return differences, (logits > 0).astype(float), taste


def loss(weights, differences, choices, ridge):
    logits = differences @ weights
    return np.logaddexp(0, logits).sum() - choices @ logits + ridge / 2 * weights @ weights


def test_the_fit_is_the_minimum_of_the_penalised_loss():
    differences, choices, _ = answers(40, noise=0.3)
    choices[:5] = 0.5
    found = fit(differences, choices)
    best = minimize(loss, np.zeros(6), (differences, choices, found.ridge), tol=1e-12)
    np.testing.assert_allclose(found.weights, best.x, atol=2e-4)


def test_more_features_than_answers_are_fitted_as_well():
    differences, choices, _ = answers(5, dimensions=12)
    found = fit(differences, choices)
    best = minimize(loss, np.zeros(12), (differences, choices, found.ridge), tol=1e-12)
    np.testing.assert_allclose(found.weights, best.x, atol=2e-4)


def test_the_variance_is_that_of_the_inverse_hessian():
    differences, choices, _ = answers(4, dimensions=6, noise=0.3)
    found = fit(differences, choices)
    chance = 1 / (1 + np.exp(-differences @ found.weights))
    hessian = (differences.T * (chance * (1 - chance))) @ differences + found.ridge * np.eye(6)
    features = RNG(1).normal(size=(3, 6))
    expected = np.einsum("ni,ij,nj->n", features, np.linalg.inv(hessian), features)
    np.testing.assert_allclose(found.variance(features), expected, rtol=1e-6)


def test_the_ridge_is_that_of_the_best_leave_one_out_loss():
    """The oracle fits every set without one answer, with every ridge."""
    differences, choices, _ = answers(16, dimensions=4, noise=0.6)
    scale = np.square(differences).sum(axis=1).mean()
    losses = {}
    for ridge in preferences._RIDGES:
        total = 0.0
        for index in range(16):
            rest = np.arange(16) != index
            args = (differences[rest], choices[rest], ridge * scale)
            weights = minimize(loss, np.zeros(4), args).x
            total += loss(weights, differences[~rest], choices[~rest], 0)
        losses[ridge] = total
    chosen = fit(differences, choices).ridge / scale
    assert losses[min(losses, key=lambda ridge: abs(ridge - chosen))] < 1.02 * min(losses.values())


def test_flipped_choices_flip_the_direction_and_swapped_sides_do_not():
    differences, choices, _ = answers(30, noise=0.3)
    found = fit(differences, choices).weights
    np.testing.assert_allclose(fit(differences, 1 - choices).weights, -found, atol=1e-7)
    np.testing.assert_allclose(fit(-differences, 1 - choices).weights, found, atol=1e-7)


def test_neither_pulls_towards_no_preference():
    differences, choices, _ = answers(30)
    assert not fit(differences, np.full(30, 0.5)).weights.any()
    with_ties = fit(np.vstack([differences] * 2), np.append(choices, np.full(30, 0.5)))
    assert np.linalg.norm(with_ties.weights) < np.linalg.norm(fit(differences, choices).weights)


def test_an_answer_is_not_in_the_fit_that_predicts_it():
    differences, choices, _ = answers(30, noise=0.3)
    before, after = (held_out(differences, c, range(30)) for c in (choices, _flip(choices, 12)))
    assert before[12] == after[12]
    foretold, other = (ahead(differences, c) for c in (choices, _flip(choices, 12)))
    np.testing.assert_array_equal(foretold[:13], other[:13])
    assert not foretold[:8].any()
    assert foretold[8:].all()


def _flip(choices, index):
    return np.where(np.arange(len(choices)) == index, 1 - choices, choices)


def test_answers_that_share_a_picture_are_left_out_together():
    differences, choices, _ = answers(20)
    twice, groups = np.vstack([differences] * 2), [*range(20)] * 2
    logits = held_out(twice, np.append(choices, choices), groups)
    np.testing.assert_allclose(logits[:20], logits[20:])
    flipped = _flip(_flip(np.append(choices, choices), 3), 23)
    assert held_out(twice, flipped, groups)[3] == pytest.approx(logits[3])


def test_more_answers_predict_better():
    found = []
    for num in (30, 100, 300):
        differences, choices, taste = answers(num, dimensions=16)
        fresh, _, _ = answers(1000, seed=1, dimensions=16)
        same = (fresh @ fit(differences, choices).weights > 0) == (fresh @ taste > 0)
        found.append(same.mean())
    assert found == sorted(found)
    assert found[0] > 0.7
    assert found[2] > 0.93


def test_coins_are_foretold_as_coins():
    """However pairs are picked. Cross-validation would call too many of these tastes real."""
    differences, _, _ = answers(40, dimensions=4)
    p_values = []
    for seed in range(20):
        coins = RNG(seed).integers(0, 2, 40).astype(float)
        p_values.append(check(ahead(differences, coins)[8:], coins[8:]).p_value)
    assert np.mean(np.array(p_values) < 0.05) <= 0.1
    assert 0.4 < np.mean(p_values) < 0.75


def test_confidence_is_accuracy_where_predictions_are_calibrated():
    differences, choices, _ = answers(400, noise=0.5)
    found = check(held_out(differences, choices, range(400)), choices)
    assert found.confidence == pytest.approx(found.accuracy, abs=0.05)
    assert found.p_value < 1e-6


def test_no_answers_teach_nothing():
    nothing = np.zeros((0, 3))
    assert check(held_out(nothing, np.zeros(0), []), np.zeros(0)).p_value == 1
    assert not fit(nothing, np.zeros(0)).weights.any()
    same = np.zeros((3, 4))  # of pictures that are equal
    assert not fit(same, np.ones(3)).weights.any()


def test_the_most_informative_pair_is_unlike_the_pictures_seen_and_undecided():
    differences, choices, _ = answers(60, dimensions=2)
    found = fit(differences, choices)
    along = found.weights / np.linalg.norm(found.weights)
    across = np.array([-along[1], along[0]])
    asked = information(found, np.stack([across, along, 0.01 * across]))
    assert asked.argmax() == 0
    assert asked[2] < 1e-3
