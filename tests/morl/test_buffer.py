import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morl.buffer import NUM_DIRECTIONS, PerformanceBuffer
from morl.objectives import returns_in_z
from morl.types import Objective, policy_id
from tests.support.search import make_objectives, make_offspring


def policies(points, objectives):
    return [
        make_offspring(objectives, policy_id(0, slot), z, parent="base", generation=0)
        for slot, z in enumerate(points)
    ]


def kept(points, num_directions=3, slots=1):
    objectives = make_objectives(len(points[0]))
    buffer = PerformanceBuffer(objectives, num_directions, slots)
    buffer.add(policies(points, objectives))
    return [int(member.policy[-1]) for member in buffer.members]


def test_the_farthest_of_each_direction_stay():
    points = [[0.9, 0.0], [0.5, 0.0], [0.4, 0.5], [0.7, 0.6], [0.1, 0.6]]
    assert kept(points) == [4, 3, 0]  # directions (0, 1), (1, 1), (1, 0)
    assert kept(points, slots=2) == [4, 3, 2, 0, 1]


def test_policies_below_the_reference_belong_where_they_are_least_behind():
    assert kept([[-0.1, 0.5], [-0.5, -0.4], [-0.4, -0.5], [-9.0, -9.0]]) == [0, 2]
    assert kept([[-0.5, -0.5]]) == [0]


def test_an_objective_exactly_zero_is_no_special_case():
    assert kept([[0.0, 0.0], [0.0, 0.3], [0.3, 0.0]]) == [1, 2]


def test_of_equal_policies_the_earlier_stays():
    assert kept([[0.5, 0.5]] * 4) == [0]


@given(st.integers(2, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_neither_order_nor_batches_matter_and_nobody_better_is_missing(num_objectives, seed):
    rng = np.random.default_rng(seed)
    objectives = make_objectives(num_objectives)
    offered = policies(rng.integers(-2, 4, size=(10, num_objectives)) / 3, objectives)
    once, shuffled = (PerformanceBuffer(objectives, 6, 2) for _ in range(2))
    once.add(offered)
    for i in rng.permutation(len(offered)):
        shuffled.add([offered[i]])
    assert [m.policy for m in once.members] == [m.policy for m in shuffled.members]
    best = returns_in_z(offered, objectives).max(axis=0)
    assert 1 <= len(once.members) <= 12
    assert (returns_in_z(once.members, objectives).max(axis=0) <= best).all()


def test_there_are_at_least_as_many_directions_as_objectives():
    for num in (2, NUM_DIRECTIONS + 1):
        objectives = [Objective(name=f"f{i}", unit="", reference=0, ideal=1) for i in range(num)]
        buffer = PerformanceBuffer(objectives)
        buffer.add(policies(np.eye(num), objectives))
        assert len(buffer.members) == num


def test_a_buffer_needs_slots_and_a_direction_for_each_objective():
    with pytest.raises(ValueError, match="slots_per_direction=0"):
        PerformanceBuffer(make_objectives(2), 5, 0)
    with pytest.raises(ValueError, match="2 weight vectors for 3 objectives"):
        PerformanceBuffer(make_objectives(3), 2, 1)
