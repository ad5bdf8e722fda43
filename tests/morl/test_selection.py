import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morl.history import History, Improvement
from morl.indicators import hypervolume, sparsity
from morl.pareto import non_dominated
from morl.selection import STRATEGIES, SelectionContext, candidate_weights, choose_greedily
from morl.types import policy_id
from tests.support.search import make_base, make_objectives, make_offspring, make_settings


def make_context(points, weights=None, **changes):
    """Children of the base model at `points` (n, M), in population, archive and history."""
    num = len(points[0])
    objectives = make_objectives(num)
    base, settings_ = make_base(objectives), make_settings(**changes)
    history, population = History(base), []
    weights = np.full((len(points), num), 1 / num) if weights is None else weights
    for slot, (z, w) in enumerate(zip(points, weights, strict=True)):
        child = make_offspring(
            objectives, policy_id(0, slot), z, parent="base", weights=w, generation=0
        )
        history.add(
            Improvement(
                parent="base",
                child=child.policy,
                weights=w,
                before=base.returns,
                after=child.returns,
                horizon=5,
                generation=0,
            )
        )
        population.append(child)
    return SelectionContext(
        settings=settings_,
        objectives=objectives,
        population=tuple(population),
        archive=tuple(population),
        current=(base,) * settings_.num_agents,
        history=history,
    )


def rng():
    return np.random.default_rng(0)


def test_a_dominated_candidate_never_beats_one_with_a_gain():
    front = np.array([[0.9, 0.1], [0.1, 0.9]])
    children = np.array([[0.5, 0.05], [0.11, 0.91], [0.05, 0.5]])  # the second barely extends
    utility_gains = np.array([9.0, 0.0, 8.0])
    for coef in (0.0, 1.0, 1e6):
        assert choose_greedily(front, children, utility_gains, 3, coef) == (1, 0, 2)


def test_a_gap_is_filled_where_sparsity_counts():
    front = np.array([[1.0, 0.0], [0.4, 0.6], [0.0, 1.0]])
    children = np.array([[1.2, 0.05], [0.72, 0.31]])  # outwards; into the widest gap
    volumes = [hypervolume(np.vstack([front, p])) for p in children]
    assert volumes[0] < volumes[1]
    children[0, 1] = 0.15
    assert choose_greedily(front, children, np.zeros(2), 1, 0.0) == (0,)
    assert choose_greedily(front, children, np.zeros(2), 1, 1.0) == (1,)


def test_a_second_like_the_first_adds_nothing():
    children = np.array([[0.9, 0.9], [0.9, 0.9], [0.2, 1.0]])
    assert choose_greedily(np.zeros((0, 2)), children, np.zeros(3), 2, 0.0) == (0, 2)


def test_without_any_gain_the_largest_utility_gain_is_chosen():
    front, children = np.array([[1.0, 1.0]]), np.array([[0.5, 0.5], [-1.0, 3.0], [0.2, 0.2]])
    assert choose_greedily(front, children, np.array([0.1, 0.2, 0.3]), 2, 0.1) == (2, 1)


@given(st.integers(2, 4), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3]))
@settings(max_examples=30, deadline=None)
def test_greedy_choice_agrees_with_recomputing_everything(num_objectives, seed, coef):
    generator = np.random.default_rng(seed)
    points = generator.random((14, num_objectives)) - 0.1
    front, children = points[:6], points[6:]
    utility_gains = generator.random(len(children))
    virtual, free, expected = front, list(range(len(children))), []
    for _ in range(4):

        def score(i, virtual=virtual):
            grown = np.vstack([virtual, children[i]])
            gain = hypervolume(grown) - hypervolume(virtual)
            thinner = sparsity(grown) - sparsity(virtual)
            return (1, gain - coef * thinner) if gain > 1e-9 else (0, utility_gains[i])

        best = max(free, key=score)
        if score(best)[0] == 1:
            virtual = np.vstack([virtual, children[best]])
        free.remove(best)
        expected.append(best)
    assert choose_greedily(front, children, utility_gains, 4, coef) == tuple(expected)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("num_agents", [2, 3, 6])
def test_there_is_always_one_task_an_agent(strategy, num_agents):
    for points in ([[0.0, 0.0]], [[-0.5, -0.4]] * 3, [[0.5, 0.1], [0.0, 0.6]]):
        context = make_context(points, num_agents=num_agents, num_weight_candidates=1)
        tasks = STRATEGIES[strategy](context, rng())
        assert len(tasks) == num_agents
        known = {"base"} | {policy.policy for policy in context.population}
        assert {task.policy for task in tasks} <= known


def test_too_few_candidates_are_filled_up_and_said(caplog):
    caplog.set_level("INFO")
    tasks = STRATEGIES["prediction_guided"](
        make_context([[0.2, 0.3]], num_weight_candidates=1), rng()
    )
    assert tasks[0].predicted_returns is not None
    assert [task.weights[0] for task in tasks[1:]] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert "1 candidates for 6 agents" in caplog.text


def test_weights_tried_from_a_node_are_not_candidates_again():
    context = make_context([[0.3, 0.2], [0.2, 0.3]])
    first = context.population[0]
    owner, weights = candidate_weights(context)
    tried = weights[owner == 0][2]
    child = make_offspring(
        context.objectives,
        policy_id(1, 0),
        [0.3, 0.3],
        parent=first.policy,
        weights=tried,
        generation=1,
    )
    context.history.add(
        Improvement(
            parent=first.policy,
            child=child.policy,
            weights=tried,
            before=first.returns,
            after=child.returns,
            horizon=5,
            generation=1,
        )
    )
    new_owner, new_weights = candidate_weights(context)
    assert (owner == 0).sum() == (new_owner == 0).sum() + 1
    assert not (np.abs(new_weights[new_owner == 0] - tried).max(axis=1) < 1e-9).any()
    assert (new_owner == 1).sum() == (owner == 1).sum()


def test_moead_gives_each_weight_the_policy_best_for_it():
    context = make_context([[0.9, 0.0], [0.6, 0.6], [0.0, 0.9]], num_agents=3)
    tasks = STRATEGIES["moead"](context, rng())
    assert [task.policy for task in tasks] == ["g000a2", "g000a1", "g000a0"]
    assert [task.weights[0] for task in tasks] == [0.0, 0.5, 1.0]


def test_random_depends_on_the_generator_alone():
    context = make_context([[0.9, 0.0], [0.6, 0.6], [0.0, 0.9]])
    first, second, other = (
        [task.to_json() for task in STRATEGIES["random"](context, np.random.default_rng(seed))]
        for seed in (1, 1, 2)
    )
    assert first == second != other


def test_an_empty_population_is_an_error():
    context = make_context([[0.1, 0.1]])
    with pytest.raises(ValueError, match="population is empty"):
        SelectionContext(
            settings=context.settings,
            objectives=context.objectives,
            population=(),
            archive=(),
            current=context.current,
            history=context.history,
        )


@pytest.mark.parametrize("num_objectives", [2, 3, 4])
def test_six_of_two_hundred_policies_are_selected_within_a_second(num_objectives):
    generator = np.random.default_rng(0)
    points = np.abs(generator.normal(size=(200, num_objectives)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    context = make_context(points, generator.dirichlet(np.ones(num_objectives), size=200))
    start = time.process_time()
    tasks = STRATEGIES["prediction_guided"](context, rng())
    assert time.process_time() - start < 1.0
    assert len(tasks) == 6
    assert non_dominated(points).all()
