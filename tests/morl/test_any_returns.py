"""Whatever finite returns an evaluation brings, the search continues and its laws hold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from morl.buffer import NUM_DIRECTIONS, SLOTS_PER_DIRECTION
from morl.evolution import Evolution
from morl.indicators import expected_utility, hypervolume, hypervolume_gains, sparsity
from morl.objectives import from_z, returns_in_z, to_z
from morl.pareto import ParetoArchive, non_dominated
from morl.prediction import predict_changes
from morl.selection import STRATEGIES, SelectionContext, choose_greedily
from morl.types import BASE_POLICY, Objective, Offspring, policy_id
from morl.weights import even_weights, normalise, weights_around_each
from tests.support.search import make_base, make_objectives, make_settings


def in_z(points):
    """Raw returns (n, M) as the search sees them."""
    names = [f"f{i}" for i in range(points.shape[1])]
    return to_z(points, [Objective(name=n, unit="", reference=0, ideal=1) for n in names])


QUIET = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
# Ties, duplicates, zeros and the ends of the range come often, not once in a million draws.
NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 5e-324, 1e300, -1e300, 1.7e308, -1.7e308]),
    st.floats(-2, 2),
    FINITE,
)
OBJECTIVES = st.integers(2, 5)


@st.composite
def runs(draw):
    """A search and the returns that its offspring will have, one vector per task."""
    num_objectives = draw(OBJECTIVES)
    agents = draw(st.integers(num_objectives, 6))
    search = make_settings(
        num_agents=agents,
        strategy=draw(st.sampled_from(sorted(STRATEGIES))),
        warmup_generations=draw(st.integers(0, 2)),
        evolutionary_generations=draw(st.integers(1, 3)),
        num_weight_candidates=draw(st.integers(1, 4)),
    )
    size = agents * search.num_generations * num_objectives
    values = draw(st.lists(NUMBERS, min_size=1, max_size=size))
    errors = draw(st.sampled_from([0.0, 1e-3, 1.0, 1e300]))
    return search, num_objectives, np.resize(values, size), errors


def told(evolution, values, error):
    """Runs a search to its end on given returns; yields the hypervolume after each generation."""
    values = iter(values)
    while (generation := evolution.ask()) is not None:
        assert len(generation.tasks) == evolution.num_agents
        offspring = []
        for slot, task in enumerate(generation.tasks):
            assert task.weights.sum() == pytest.approx(1)
            assert (task.weights >= 0).all()
            if task.predicted_returns is not None:
                assert np.isfinite(task.predicted_returns).all()
            returns = [next(values) for _ in evolution.objectives]
            offspring.append(
                Offspring(
                    policy=policy_id(generation.index, slot),
                    parent=task.policy,
                    weights=task.weights,
                    returns=returns,
                    std_error=[error] * len(returns),
                    generation=generation.index,
                )
            )
        evolution.tell(offspring)
        yield evolution.metrics()


@QUIET
@given(runs())
def test_any_finite_returns_leave_the_search_whole(run):
    search, num_objectives, values, error = run
    objectives = make_objectives(num_objectives)
    evolution = Evolution(search, objectives, make_base(objectives))
    volume = evolution.metrics()["morl/hypervolume"]
    for metrics in told(evolution, values, error):
        assert all(np.isfinite(value) for value in metrics.values()), metrics
        assert metrics["morl/hypervolume"] >= volume
        volume = metrics["morl/hypervolume"]
        z = returns_in_z(evolution.archive, objectives)
        assert non_dominated(z).all()
        assert 1 <= len(evolution.population) <= NUM_DIRECTIONS * SLOTS_PER_DIRECTION
        assert {m.policy for m in evolution.archive} <= evolution.live_policies
    again = Evolution.restore(search, objectives, evolution.state())
    assert [m.policy for m in again.archive] == [m.policy for m in evolution.archive]
    assert [m.policy for m in again.population] == [m.policy for m in evolution.population]


@st.composite
def point_sets(draw, max_size=12):
    num_objectives = draw(OBJECTIVES)
    rows = st.lists(NUMBERS, min_size=num_objectives, max_size=num_objectives)
    points = draw(st.lists(rows, min_size=1, max_size=max_size))
    points += draw(st.lists(st.sampled_from(points), max_size=3))  # duplicates
    return np.array(points)


@QUIET
@given(point_sets())
def test_indicators_of_any_points_are_finite_and_ignore_their_order(points):
    z = in_z(points)
    for indicator in (hypervolume, sparsity):
        value = indicator(z)
        assert np.isfinite(value)
        assert value >= 0
        assert indicator(z[::-1]) == pytest.approx(value, rel=1e-9)
        assert indicator(np.vstack([z, z[:1]])) == pytest.approx(value, rel=1e-9)
    assert np.isfinite(expected_utility(z, even_weights(6, z.shape[1])))
    gains = hypervolume_gains(z[:1], z)
    assert np.isfinite(gains).all()
    assert (gains >= 0).all()
    assert gains[0] == 0


@QUIET
@given(point_sets(), st.integers(1, 8), st.sampled_from([0.0, 0.1, 10.0]))
def test_any_candidates_give_as_many_distinct_choices_as_were_asked_for(points, num, coef):
    z = in_z(points)
    chosen = choose_greedily(z[:2], z, z.sum(axis=1), num, coef)
    assert len(chosen) == len(set(chosen)) == min(num, len(z))


@QUIET
@given(point_sets(max_size=8))
def test_any_history_gives_finite_predictions(points):
    """Also where all records are one and the same."""
    from morl.history import Changes

    num_objectives = points.shape[1]
    z = in_z(points)
    weights = np.resize(even_weights(6, num_objectives), z.shape)
    history = Changes(before=z, weights=weights, change=z[::-1] - z)
    owner = np.arange(len(z))
    prediction = predict_changes(history, z, owner, weights, 5)
    assert np.isfinite(prediction.changes).all()
    assert len(prediction.kinds) == len(z)


@QUIET
@given(st.lists(st.floats(0, 1.7e308), min_size=2, max_size=5).filter(any))
@example([5e-324, 0.0])
@example([1.7e308] * 5)
def test_any_weights_can_be_normalised_and_have_neighbours(values):
    weights = normalise(values)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    around = weights_around_each(weights[None], 5)[0]
    assert 1 <= len(around) <= 5
    assert np.allclose(around.sum(axis=1), 1)


def test_thousands_of_policies_take_no_thousands_of_seconds():
    """3,000 policies, half of them one of 20 points: archive, population and choice keep up."""
    objectives = make_objectives(3)
    rng = np.random.default_rng(0)
    z = rng.dirichlet(np.ones(3), 3000) + 0.01 * rng.normal(size=(3000, 3))
    z[::2] = z[rng.integers(20, size=1500)]
    base = make_base(objectives)
    crowd = [
        dataclasses.replace(
            base,
            policy=f"g000a{i}",
            parent=BASE_POLICY,
            generation=0,
            returns=from_z(row, objectives),
        )
        for i, row in enumerate(z)
    ]
    archive = ParetoArchive(objectives)
    archive.add(crowd)
    members = returns_in_z(archive.members, objectives)
    assert non_dominated(members).all()
    assert len(archive.members) > 1000
    context = SelectionContext(
        settings=make_settings(num_agents=6, num_weight_candidates=2),
        objectives=objectives,
        population=tuple(crowd),
        archive=archive.members,
        current=(base,) * 6,
        history=Evolution(make_settings(), objectives, base).history,
    )
    for name, strategy in STRATEGIES.items():
        tasks = strategy(context, np.random.default_rng(0))
        assert len(tasks) == 6, name
