"""The prediction model of PGMORL's authors, against a plain restatement."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from benchmarks.authors_prediction import predict_as_the_authors
from morl.history import Changes
from morl.prediction import predict_changes
from morl.weights import even_weights
from tests.support.changes import changes_of, predict


def restated(history, parent, queries):
    """The formulas of the authors' paper and code once more, plainly, for one policy."""
    relative, sigma = 0.1, 0.03
    while True:
        near = [
            i
            for i, f in enumerate(history.before)
            if all(abs(f[m] - parent[m]) < relative * abs(parent[m]) for m in range(len(parent)))
        ]
        if len({tuple(np.round(history.weights[i], 6)) for i in near}) > 3:
            break
        relative, sigma = 2 * relative, 2 * sigma
    closeness = np.array(
        [
            np.exp(
                -((np.linalg.norm((history.before[i] - parent) / np.abs(parent)) / sigma) ** 2) / 2
            )
            for i in near
        ]
    )
    columns = []
    for m in range(len(parent)):
        x, y = history.weights[near, m], history.change[near, m]

        def f(p, x):
            e = np.exp(p[1] * (x - p[2]))
            return p[0] * (e - 1) / (e + 1) + p[3]

        def jacobian(p, x=x):
            e = np.exp(p[1] * (x - p[2]))
            steep = 2 * e / (e + 1) ** 2
            rows = [(e - 1) / (e + 1), p[0] * (x - p[2]) * steep, -p[0] * p[1] * steep, 0 * x + 1]
            return (np.array(rows) * closeness).T

        fit = least_squares(
            lambda p, x=x, y=y, f=f: (f(p, x) - y) * closeness,
            np.ones(4),
            jac=jacobian,
            loss="soft_l1",
            f_scale=20.0,
            bounds=([0, 0.1, -5, -500], [min(max(np.ptp(y), 1.0), 500.0), 20, 5, 500]),
        )
        columns.append(f(fit.x, queries[:, m]))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("num_objectives", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_the_published_formulas(num_objectives, seed):
    rng = np.random.default_rng(seed)
    weights = even_weights(10, num_objectives)
    before = 300 + 60 * rng.random((10, num_objectives))
    change = 40 * np.tanh(6 * (weights - 0.4)) + 3 * rng.normal(size=weights.shape)
    history = Changes(before=before, weights=weights, change=change)
    queries = even_weights(15, num_objectives)
    prediction = predict(predict_as_the_authors, history, queries, parent=330.0)
    assert prediction.kinds == ("authors",)
    expected = restated(history, np.full(num_objectives, 330.0), queries)
    np.testing.assert_allclose(prediction.changes, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("parent", [0.0, 0.5])
def test_it_ends_where_their_search_would_not(parent):
    num_weights = 6 if parent == 0.0 else 3  # an objective is 0; three agents
    history = changes_of(lambda w: w, even_weights(num_weights, 2))
    queries = even_weights(5, 2)
    prediction = predict(predict_as_the_authors, history, queries, parent=parent)
    expected = predict(predict_changes, history, queries, parent=parent)
    assert prediction.kinds == expected.kinds
    np.testing.assert_array_equal(prediction.changes, expected.changes)


def test_no_history_gives_no_change():
    nothing = Changes(**{name: np.zeros((0, 3)) for name in ("before", "weights", "change")})
    prediction = predict(predict_as_the_authors, nothing, even_weights(6, 3))
    assert prediction.kinds == ("none",)
    assert not prediction.changes.any()
