import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morl.indicators import (
    expected_utility,
    hypervolume,
    hypervolume_gains,
    sparsities_with,
    sparsity,
)
from morl.pareto import non_dominated


def test_hypervolume_by_hand():
    assert hypervolume(np.array([[1.0, 0.5], [0.5, 1.0]])) == pytest.approx(0.75)
    assert hypervolume(np.array([[0.5, 0.5, 0.5], [1.0, 0.1, 0.1]])) == pytest.approx(0.13)
    assert hypervolume(np.full((1, 4), 0.5)) == pytest.approx(1 / 16)


def test_points_not_above_the_reference_add_nothing():
    assert hypervolume(np.array([[-1.0, 5.0], [0.0, 3.0], [-2.0, -2.0]])) == 0.0
    assert hypervolume(np.zeros((0, 2))) == 0.0


def test_nan_is_left_out_and_logged(caplog):
    assert hypervolume(np.array([[0.5, 0.5], [np.nan, 9.0]])) == pytest.approx(0.25)
    assert "1 of 2 points hold NaN" in caplog.text


def test_sparsity_by_hand():
    front = np.array([[0.0, 1.0], [0.3, 0.8], [1.0, 0.0]])
    assert sparsity(front) == pytest.approx((0.3**2 + 0.7**2 + 0.8**2 + 0.2**2) / 2)
    assert sparsity(front[:1]) == 0.0


def test_dominated_and_equal_points_do_not_make_a_front_look_dense():
    front = np.array([[0.0, 1.0], [1.0, 0.0]])
    crowded = np.vstack([front, front, [[-0.4, 0.4], [-3.0, 0.9]]])[[3, 0, 5, 1, 4, 2]]
    assert sparsity(crowded) == sparsity(front) == 2.0


def test_expected_utility_by_hand():
    points, users = np.array([[1.0, 0.0], [0.4, 0.4]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    assert expected_utility(points, users) == pytest.approx(0.7)


@given(st.integers(2, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_gains_and_sparsities_agree_with_inserting_one_by_one(num_objectives, seed):
    rng = np.random.default_rng(seed)
    points = rng.integers(-1, 8, size=(20, num_objectives)) / 8  # with ties and duplicates
    front = np.unique(points[:10][non_dominated(points[:10])], axis=0)
    candidates = points[10:]
    gains = hypervolume_gains(front, candidates)
    slow = [hypervolume(np.vstack([front, p])) - hypervolume(front) for p in candidates]
    np.testing.assert_allclose(gains, slow, atol=1e-12)
    extending = candidates[gains > 1e-9]
    np.testing.assert_allclose(
        sparsities_with(front, extending),
        [sparsity(np.vstack([front, p])) for p in extending],
        atol=1e-12,
    )
    np.testing.assert_allclose(hypervolume(rng.permutation(points)), hypervolume(points))


def test_gains_against_an_empty_front_are_the_boxes():
    gains = hypervolume_gains(np.zeros((0, 3)), np.array([[0.5, 0.5, 0.5], [1.0, 1.0, -0.1]]))
    np.testing.assert_allclose(gains, [0.125, 0.0])
