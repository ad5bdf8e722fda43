import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morl.indicators import hypervolume
from morl.objectives import returns_in_z
from morl.pareto import ParetoArchive, non_dominated, same_reading
from morl.types import policy_id
from tests.support.search import make_objectives, make_offspring

OBJECTIVES = make_objectives(2)


def newcomer(slot, z, noise=0.0, objectives=OBJECTIVES):
    return make_offspring(
        objectives, policy_id(0, slot), z, parent="base", noise=noise, generation=0
    )


def names(archive):
    return [member.policy for member in archive.members]


def test_non_dominated_by_hand():
    points = np.array([[1.0, 0.0], [0.5, 0.5], [0.4, 0.5], [0.0, 1.0], [0.5, 0.5]])
    assert non_dominated(points).tolist() == [True, True, False, True, True]
    assert non_dominated(np.zeros((0, 3))).tolist() == []


def test_nan_is_never_called_non_dominated():
    with pytest.raises(ValueError, match="1 of 2 points hold NaN"):
        non_dominated(np.array([[1.0, 0.0], [np.nan, 0.0]]))


@given(st.integers(2, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_non_dominated_agrees_with_the_definition(num_objectives, seed):
    points = np.random.default_rng(seed).integers(-2, 3, size=(12, num_objectives)).astype(float)
    expected = [not any((q >= p).all() and (q > p).any() for q in points) for p in points]
    assert non_dominated(points).tolist() == expected


def test_members_below_the_reference_stay():
    archive = ParetoArchive(OBJECTIVES)
    archive.add([newcomer(0, [-0.5, 0.7]), newcomer(1, [-0.2, -0.3]), newcomer(2, [-0.6, -0.6])])
    assert names(archive) == ["g000a0", "g000a1"]


def test_a_better_policy_replaces_those_it_dominates():
    archive = ParetoArchive(OBJECTIVES)
    archive.add([newcomer(0, [0.5, 0.5]), newcomer(1, [0.9, 0.1])])
    archive.add([newcomer(2, [0.6, 0.6])])
    assert names(archive) == ["g000a1", "g000a2"]


def test_equal_evaluations_are_one_member():
    archive = ParetoArchive(OBJECTIVES)
    archive.add([newcomer(slot, [0.3, 0.3]) for slot in range(4)])
    assert names(archive) == ["g000a0"]


def test_a_reading_within_noise_is_a_duplicate_and_counted():
    archive = ParetoArchive(OBJECTIVES)
    archive.add([newcomer(0, [0.5, 0.5], noise=0.1)])
    archive.add([newcomer(1, [0.53, 0.45], noise=0.1)])  # within 0.5 sqrt(2) 0.1 = 0.07
    archive.add([newcomer(2, [0.53, 0.42], noise=0.1)])
    assert names(archive) == ["g000a0", "g000a2"]
    assert archive.num_duplicates == 1


def test_the_noise_of_both_readings_counts():
    exact, noisy = newcomer(0, [0.5, 0.5]), newcomer(1, [0.54, 0.5], noise=0.1)
    assert same_reading(exact, noisy, OBJECTIVES)
    assert not same_reading(exact, newcomer(2, [0.56, 0.5], noise=0.1), OBJECTIVES)


@given(st.integers(2, 5), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1]))
@settings(max_examples=40, deadline=None)
def test_archive_laws(num_objectives, seed, noise):
    rng = np.random.default_rng(seed)
    objectives = make_objectives(num_objectives)
    batch = [
        newcomer(slot, rng.integers(-3, 4, size=num_objectives) / 4, noise, objectives)
        for slot in range(8)
    ]
    archive, shuffled = ParetoArchive(objectives), ParetoArchive(objectives)
    before = 0.0
    for part in (batch[:4], batch[4:]):
        archive.add(part)
        shuffled.add([part[i] for i in rng.permutation(len(part))])
        volume = hypervolume(returns_in_z(archive.members, objectives))
        assert volume >= before - 1e-12
        before = volume
    assert names(archive) == names(shuffled)
    assert non_dominated(returns_in_z(archive.members, objectives)).all()
    assert not any(
        same_reading(a, b, objectives)
        for a in archive.members
        for b in archive.members
        if a is not b
    )
