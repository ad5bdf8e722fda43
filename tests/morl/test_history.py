import json

import numpy as np
import pytest

from morl.history import History, Improvement
from morl.types import policy_id
from tests.support.search import make_base, make_objectives

OBJECTIVES = make_objectives(2)
BASE = make_base(OBJECTIVES)


def record(**changes):
    values = {
        "parent": "base",
        "child": policy_id(0, 0),
        "weights": [0.25, 0.75],
        "before": BASE.returns,
        "after": np.add(BASE.returns, [0.1, 10.0]),
        "horizon": 5,
        "generation": 0,
    }
    return Improvement(**(values | changes))


def test_changes_are_in_z():
    history = History(BASE)
    history.add(record())
    changes = history.changes(OBJECTIVES, horizon=5)
    np.testing.assert_allclose(changes.before, [[0.15, 0.15]])
    np.testing.assert_allclose(changes.change, [[0.1, 0.1]])
    np.testing.assert_allclose(changes.weights, [[0.25, 0.75]])


def test_another_horizon_is_not_mixed_in():
    history = History(BASE)
    history.add(record())
    assert history.changes(OBJECTIVES, horizon=20).before.shape == (0, 2)


def test_tried_weights_belong_to_the_node_they_were_tried_from():
    history = History(BASE)
    first = record()
    history.add(first)
    history.add(
        record(
            parent=first.child,
            child=policy_id(1, 0),
            before=first.after,
            weights=[0.5, 0.5],
            generation=1,
        )
    )
    assert history.tried(BASE.policy, 2).tolist() == [[0.25, 0.75]]
    assert history.tried(first.child, 2).tolist() == [[0.5, 0.5]]
    assert history.tried(policy_id(1, 0), 2).shape == (0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parent": policy_id(7, 7)}, "never evaluated"),
        ({"before": [4.2, -4.1]}, "evaluation of its parent"),
        ({"child": "base"}, "name every policy once"),
        ({"horizon": 0}, "horizon=0"),
        ({"after": [0.0, float("inf")]}, "finite"),
    ],
)
def test_a_record_that_does_not_start_at_its_parent_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        History(BASE).add(record(**changes))


def test_history_survives_json_text():
    history = History(BASE)
    history.add(record())
    copy = History(BASE)
    for entry in json.loads(json.dumps(history.to_json())):
        copy.add(Improvement.from_json(entry))
    assert copy.to_json() == history.to_json()
    assert [entry.child for entry in copy] == [policy_id(0, 0)]
    assert len(copy) == 1
