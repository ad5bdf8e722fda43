import json

import numpy as np
import pytest

from morl.objectives import check_objectives, error_to_z, from_z, to_z
from morl.types import Generation, Objective, Offspring, Task, policy_id
from tests.support.search import make_base, make_objectives


def test_policy_ids_name_generation_and_slot():
    assert policy_id(3, 2) == "g003a2"


def test_values_survive_json_text_bit_for_bit():
    task = Task(policy=policy_id(0, 1), weights=[0.1, 0.9], predicted_returns=[1 / 3, -1e-300])
    generation = Generation(index=2, stage="warmup", tasks=(task, task), num_iterations=7)
    copy = Generation.from_json(json.loads(json.dumps(generation.to_json())))
    assert copy.to_json() == generation.to_json()
    assert copy.tasks[0].predicted_returns.tobytes() == task.predicted_returns.tobytes()
    base = make_base(make_objectives(3))
    assert Offspring.from_json(json.loads(json.dumps(base.to_json()))).to_json() == base.to_json()


def test_vectors_are_copies_and_read_only():
    weights = np.array([0.5, 0.5])
    task = Task(policy=policy_id(0, 0), weights=weights)
    weights[0] = 7
    assert task.weights.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="read-only"):
        task.weights[0] = 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Task(policy=policy_id(0, 0), weights=[0.5, 0.6]), "sum to 1"),
        (lambda: Task(policy=policy_id(0, 0), weights=[-0.5, 1.5]), "non-negative"),
        (lambda: Task(policy=policy_id(0, 0), weights=[]), "one entry per objective"),
        (
            lambda: Task(policy=policy_id(0, 0), weights=[0.5, 0.5], predicted_returns=[1, 2, 3]),
            "have 2",
        ),
        (lambda: Objective(name="f", unit="", reference=1.0, ideal=1.0), "below"),
        (lambda: Objective(name="f", unit="", reference=float("nan"), ideal=1.0), "finite"),
        (lambda: Objective(name="", unit="", reference=0.0, ideal=1.0), "empty name"),
        (lambda: Generation(index=0, stage="late", tasks=(), num_iterations=1), "stage='late'"),
        (
            lambda: Generation(index=0, stage="warmup", tasks=(), num_iterations=1),
            "at least one task",
        ),
        (lambda: Task.from_json({"policy": "base", "weight": [1, 0]}), "expected"),
    ],
)
def test_wrong_values_are_met_with_the_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def offspring(**changes):
    values = {
        "policy": policy_id(0, 0),
        "parent": "base",
        "weights": [0.5, 0.5],
        "returns": [1.0, 2.0],
        "std_error": [0.0, 0.1],
        "generation": 0,
    }
    return Offspring(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"returns": [1.0, float("nan")]}, "returns of g000a0.*finite"),
        ({"returns": [float("inf"), 0.0]}, "finite"),
        ({"std_error": [0.0, -0.1]}, "not be negative"),
        ({"std_error": [0.0, 0.1, 0.2]}, "have 2 entries"),
        ({"parent": None}, "base model"),
        ({"policy": "base"}, "base model"),
    ],
)
def test_an_offspring_that_was_not_evaluated_properly_is_refused(changes, message):
    offspring()
    with pytest.raises(ValueError, match=message):
        offspring(**changes)


def test_z_is_zero_at_the_reference_and_one_at_the_ideal():
    objectives = make_objectives(3)
    assert to_z([o.reference for o in objectives], objectives).tolist() == [0, 0, 0]
    assert to_z([o.ideal for o in objectives], objectives).tolist() == [1, 1, 1]
    np.testing.assert_allclose(to_z([0.2, -95.0, 2.0], objectives), [0.2, 0.25, -0.5])
    np.testing.assert_allclose(error_to_z([0.2, 5.0, 2.0], objectives), [0.2, 0.05, 1.0])


def test_from_z_inverts_to_z():
    objectives = make_objectives(4)
    z = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_allclose(to_z(from_z(z, objectives), objectives), z, atol=1e-11)


def test_objectives_need_distinct_names():
    first, second = make_objectives(2)
    for bad in ([], [first, first]):
        with pytest.raises(ValueError, match="at least one with distinct names"):
            check_objectives(bad)
    assert check_objectives([first, second]) == (first, second)
