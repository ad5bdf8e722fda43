import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morl.history import Changes
from morl.prediction import neighbours, num_distinct, predict_changes, saturating
from morl.weights import even_weights
from tests.support.changes import changes_of, predict


def test_a_saturating_response_is_recovered():
    def truth(w):
        return saturating(w, np.array([0.2, 9.0, 0.4, 0.1]))

    history = changes_of(truth, even_weights(11, 2))
    queries = even_weights(23, 2)
    prediction = predict(predict_changes, history, queries)
    assert prediction.kinds == ("tanh",)
    np.testing.assert_allclose(prediction.changes, truth(queries), atol=0.03)  # of a range of 0.4


def test_two_or_three_weights_give_the_line_through_them():
    history = changes_of(lambda w: 0.3 * w - 0.1, even_weights(3, 2))
    queries = even_weights(5, 2)
    prediction = predict(predict_changes, history, queries)
    assert prediction.kinds == ("linear",)
    np.testing.assert_allclose(prediction.changes, 0.3 * queries - 0.1, atol=1e-6)


def test_weights_are_counted_for_each_objective_by_itself():
    """Six even weights of three objectives are 0, 1/2 and 1 to each: too few for a tanh."""
    history = changes_of(lambda w: 0.3 * w, even_weights(6, 3), noise=0.02)
    queries = np.stack([np.linspace(0, 1, 5), 1 - np.linspace(0, 1, 5), np.zeros(5)], axis=1)
    prediction = predict(predict_changes, history, queries)
    assert prediction.kinds == ("linear",)
    np.testing.assert_allclose(np.diff(prediction.changes[:, 0], 2), 0, atol=1e-6)


def test_one_weight_gives_the_mean_change():
    weights = np.tile([0.5, 0.5], (4, 1))
    change = np.array([[0.0, 1.0], [0.1, 1.0], [0.2, 1.0], [0.1, 1.0]])
    history = Changes(before=np.full((4, 2), 0.5), weights=weights, change=change)
    prediction = predict(predict_changes, history, even_weights(5, 2))
    assert prediction.kinds == ("mean",)
    np.testing.assert_allclose(prediction.changes, np.tile([0.1, 1.0], (5, 1)))


def test_no_history_gives_no_change():
    nothing = Changes(**{name: np.zeros((0, 3)) for name in ("before", "weights", "change")})
    prediction = predict(predict_changes, nothing, even_weights(6, 3))
    assert prediction.kinds == ("none",)
    assert not prediction.changes.any()


def test_more_weight_is_never_predicted_to_harm():
    history = changes_of(lambda w: -0.3 * w, even_weights(6, 2))
    prediction = predict(predict_changes, history, even_weights(9, 2))
    np.testing.assert_allclose(prediction.changes, -0.15, atol=1e-9)


def test_only_the_nearest_improvements_count():
    before = np.repeat([[0.5, 0.5], [0.9, 0.9]], 4, axis=0)
    weights = np.tile(even_weights(4, 2), (2, 1))
    near_and_far = np.where(before < 0.7, 0.1, 5.0)
    history = Changes(before=before, weights=weights, change=near_and_far)
    prediction = predict(predict_changes, history, even_weights(3, 2), num_neighbours=4)
    np.testing.assert_allclose(prediction.changes, 0.1)


def test_neighbours_count_by_distance_in_units_of_half_the_farthest():
    before = np.array([[0.0, 0.3], [0.0, 0.1], [0.0, 0.4], [0.0, 0.2]])
    nearest, closeness = neighbours(before, np.zeros((1, 2)), 3)
    assert nearest.tolist() == [[1, 3, 0]]
    np.testing.assert_allclose(closeness, np.exp([[-2 / 9, -8 / 9, -2]]))


def test_predictions_commute_with_the_scale_of_a_change():
    history = changes_of(np.sqrt, even_weights(7, 2), noise=0.05)
    scaled = Changes(before=history.before, weights=history.weights, change=1e-4 * history.change)
    queries = even_weights(9, 2)
    np.testing.assert_allclose(
        predict(predict_changes, scaled, queries).changes,
        1e-4 * predict(predict_changes, history, queries).changes,
        rtol=1e-9,
    )


def test_num_distinct_counts_weights_not_records():
    weights = np.array([[0.5, 0.5], [0.5, 0.5 + 1e-7], [1.0, 0.0], [0.5, 0.5]])
    assert num_distinct(weights) == 2
    assert num_distinct(weights[:0]) == 0


@given(st.integers(2, 5), st.integers(0, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_predictions_are_finite_and_within_reason(num_objectives, num_records, seed):
    rng = np.random.default_rng(seed)
    lattice = even_weights(8, num_objectives)
    history = Changes(
        before=rng.integers(-2, 3, size=(num_records, num_objectives)) / 2,
        weights=lattice[rng.integers(8, size=num_records)],
        change=rng.integers(-2, 3, size=(num_records, num_objectives)) * 1e3,
    )
    parents = rng.normal(size=(3, num_objectives))
    owner = np.repeat(np.arange(3), 8)
    prediction = predict_changes(history, parents, owner, np.tile(lattice, (3, 1)), 6)
    assert np.isfinite(prediction.changes).all()
    assert len(prediction.kinds) == 3
    assert (np.abs(prediction.changes) < 1e5).all()


def test_at_least_one_neighbour_is_needed():
    with pytest.raises(ValueError, match="num_neighbours=0"):
        predict(
            predict_changes,
            changes_of(np.sqrt, even_weights(4, 2)),
            even_weights(3, 2),
            num_neighbours=0,
        )
