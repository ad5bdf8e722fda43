"""The policies that are blended, and the place of a blend: known answers and laws, any M."""

from __future__ import annotations

import doctest
import importlib
import itertools

import numpy as np
import pytest

from front.blend import coefficients, depth_of_corner, height_above_chord, neighbours


def random_front(seed, num, num_objectives):
    """Mutually non-dominated points: on a sphere."""
    z = np.random.default_rng(seed).uniform(0.05, 1, (num, num_objectives))
    return z / np.linalg.norm(z, axis=1)[:, None]


@pytest.mark.parametrize("module", ["front.blend", "front.tables", "run.samples"])
def test_the_examples_of_the_docstrings_hold(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_of_two_objectives_are_the_consecutive_points(seed):
    z = random_front(seed, 9, 2)
    order = np.argsort(z[:, 0])
    expected = {tuple(sorted(pair)) for pair in itertools.pairwise(order)}
    assert set(neighbours(z)) == expected


def test_neighbours_of_three_objectives_have_no_point_between_them():
    z = random_front(0, 8, 3)
    pairs = set(neighbours(z))
    for i in range(8):
        for j in range(i + 1, 8):
            middle, radius = (z[i] + z[j]) / 2, np.linalg.norm(z[i] - z[j]) / 2
            others = [k for k in range(8) if k not in {i, j}]
            is_empty = all(np.linalg.norm(z[k] - middle) >= radius for k in others)
            assert ((i, j) in pairs) == is_empty


@pytest.mark.parametrize("num_objectives", [2, 3, 4])
def test_coefficients_are_a_convex_combination_of_at_most_m(num_objectives):
    z, rng = random_front(1, 7, num_objectives), np.random.default_rng(2)
    for weights in rng.dirichlet(np.ones(num_objectives), 10):
        found = coefficients(z, weights)
        assert (found >= 0).all()
        assert found.sum() == pytest.approx(1)
        assert (found > 0).sum() <= num_objectives


@pytest.mark.parametrize("num_objectives", [2, 3])
def test_a_whole_preference_is_the_best_policy_alone(num_objectives):
    z = random_front(3, 6, num_objectives)
    for k in range(num_objectives):
        weights = np.eye(num_objectives)[k]
        assert coefficients(z, weights)[(z @ weights).argmax()] == pytest.approx(1)


def test_of_two_objectives_the_best_policy_is_a_part_and_coefficients_are_continuous():
    z = random_front(4, 8, 2)
    previous = None
    for first in np.linspace(0, 1, 401):
        weights = np.array([first, 1 - first])
        found = coefficients(z, weights)
        assert found[(z @ weights).argmax()] > 0
        parts = np.flatnonzero(found)
        positions = np.argsort(np.argsort(z[:, 0]))[parts]
        assert np.ptp(positions) <= 1  # one policy, or two neighbours
        if previous is not None:
            assert np.abs(found - previous).max() < 0.2
        previous = found


def test_the_order_of_the_policies_does_not_matter():
    z, weights = random_front(5, 6, 3), np.array([0.2, 0.5, 0.3])
    order = np.random.default_rng(0).permutation(6)
    np.testing.assert_allclose(coefficients(z[order], weights), coefficients(z, weights)[order])


@pytest.mark.parametrize("num_objectives", [2, 3, 4])
def test_the_height_is_the_best_worst_excess_over_the_chord(num_objectives):
    """Against a search over 20,001 points of the chord."""
    rng = np.random.default_rng(6)
    for _ in range(20):
        first, second = random_front(rng.integers(1000), 2, num_objectives)
        blend = rng.uniform(0, 1, num_objectives)
        height = height_above_chord(blend, first, second)
        s = np.linspace(0, 1, 20_001)[:, None]
        slow = (blend - first - s * (second - first)).min(axis=1).max()
        assert height.value == pytest.approx(slow, abs=1e-4)
        on_chord = first + height.position * (second - first)
        assert height.weights @ (blend - on_chord) == pytest.approx(height.value, abs=1e-8)
        assert height.weights.sum() == pytest.approx(1)


def test_the_chord_has_height_0_and_the_corner_its_depth():
    first, second = np.array([0.1, 0.9]), np.array([0.7, 0.3])
    for position in (0.0, 0.3, 1.0):
        point = (1 - position) * first + position * second
        assert height_above_chord(point, first, second).value == pytest.approx(0, abs=1e-9)
    assert depth_of_corner(first, second) == pytest.approx(0.3)
