from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morl.weights import even_weights, normalise, simplex_lattice, weights_around_each


@pytest.mark.parametrize("num_objectives", [2, 3, 4, 5])
@pytest.mark.parametrize("extra", [0, 1, 2, 5, 16])
def test_even_weights_have_exact_number_sum_and_vertices(num_objectives, extra):
    weights = even_weights(num_objectives + extra, num_objectives)
    assert weights.shape == (num_objectives + extra, num_objectives)
    assert (weights >= 0).all()
    assert (weights.sum(axis=1) == 1.0).all()
    assert {tuple(row) for row in np.eye(num_objectives)} <= {tuple(row) for row in weights}
    assert len(np.unique(weights.round(9), axis=0)) == len(weights)


def test_even_weights_of_two_objectives_are_evenly_spaced():
    np.testing.assert_allclose(even_weights(7, 2)[:, 0], np.arange(7) / 6)


def test_even_weights_beyond_two_objectives_are_das_dennis_where_the_number_fits():
    assert {tuple(row) for row in even_weights(6, 3)} == {
        (0, 0, 1),
        (0, 1, 0),
        (1, 0, 0),
        (0, 0.5, 0.5),
        (0.5, 0, 0.5),
        (0.5, 0.5, 0),
    }


def test_the_fourth_of_three_objectives_is_the_centre():
    np.testing.assert_allclose(even_weights(4, 3)[3], [1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize(("num", "num_objectives"), [(1, 2), (2, 3), (0, 2), (0, 1)])
def test_fewer_weights_than_objectives_are_refused(num, num_objectives):
    with pytest.raises(ValueError, match="one weight vector for each"):
        even_weights(num, num_objectives)


def test_a_lattice_has_binomially_many_points():
    assert len(simplex_lattice(5, 4)) == comb(8, 3)


@given(st.lists(st.floats(0, 1e12), min_size=2, max_size=5).filter(any))
@settings(max_examples=60, deadline=None)
def test_normalised_weights_lie_on_the_simplex_and_keep_their_ratios(values):
    weights = normalise(values)
    assert (weights >= 0).all()
    assert abs(weights.sum() - 1) < 4e-16
    np.testing.assert_allclose(weights * sum(values), values, rtol=1e-9, atol=1e-9 * max(values))


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, -0.1], [1.0, float("nan")]])
def test_what_cannot_be_normalised_is_refused(values):
    with pytest.raises(ValueError, match="weights="):
        normalise(values)


@pytest.mark.parametrize("num_objectives", [2, 3, 4, 5])
def test_weights_around_stay_within_the_angle_and_begin_with_the_centre(num_objectives):
    for centre in [
        *np.eye(num_objectives),
        np.full(num_objectives, 1 / num_objectives),
        normalise(np.arange(num_objectives) + 0.1),
    ]:
        around = weights_around_each(centre[None], 7)[0]
        assert around.shape == (7, num_objectives)
        np.testing.assert_array_equal(around[0], centre)
        assert (around >= 0).all()
        np.testing.assert_allclose(around.sum(axis=1), 1.0, atol=1e-15)
        cosine = around @ centre / np.linalg.norm(around, axis=1) / np.linalg.norm(centre)
        assert (cosine >= np.cos(np.pi / 4) - 1e-9).all()
        assert len(np.unique(around.round(9), axis=0)) == 7


def test_weights_around_need_a_positive_number_and_angle():
    for num, angle in ((0, 1.0), (3, 0.0), (3, float("nan"))):
        with pytest.raises(ValueError, match="positive"):
            weights_around_each(np.array([[0.5, 0.5]]), num, angle)
