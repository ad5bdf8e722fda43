import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morl.evolution import Evolution
from morl.indicators import hypervolume
from morl.objectives import returns_in_z, to_z
from morl.selection import STRATEGIES
from morl.types import BASE_POLICY, Objective, policy_id
from tests.support.search import Toy, make_base, make_objectives, make_offspring, make_settings, run


def make_evolution(objectives, base=None, **changes):
    return Evolution(make_settings(**changes), objectives, base or make_base(objectives))


def decisions(generation):
    return [(task.policy, task.weights.tolist()) for task in generation.tasks]


# --- stages and protocol --------------------------------------------------------------------------


def test_warm_up_continues_every_slot_along_its_even_weights():
    objectives = make_objectives(2)
    evolution, toy = make_evolution(objectives, evolutionary_generations=0), Toy(objectives)
    for index, generation in enumerate(run(evolution, toy)):
        assert (generation.index, generation.stage) == (index, "warmup")
        parents = [BASE_POLICY if index == 0 else policy_id(index - 1, slot) for slot in range(6)]
        assert [task.policy for task in generation.tasks] == parents
        np.testing.assert_allclose([t.weights[0] for t in generation.tasks], np.arange(6) / 5)
        assert generation.num_iterations == 5
    assert evolution.num_generations_done == evolution.num_generations == 3
    assert evolution.is_finished
    assert evolution.ask() is None


def test_evolution_without_warm_up_starts_from_the_base_model():
    objectives = make_objectives(3)
    evolution = make_evolution(objectives, warmup_generations=0)
    generation = evolution.ask()
    assert generation.stage == "evolutionary"
    assert {task.policy for task in generation.tasks} == {BASE_POLICY}
    assert len({tuple(task.weights) for task in generation.tasks}) == 6


@pytest.mark.parametrize("num_objectives", [2, 3])
def test_a_soup_warms_up_the_extremes_and_blends_them_into_one_policy_an_agent(num_objectives):
    objectives = make_objectives(num_objectives)
    evolution = make_evolution(objectives, start="soup", warmup_generations=2)
    toy, stages = Toy(objectives), []
    while (generation := evolution.ask()) is not None:
        stages.append(generation.stage)
        parts = evolution.ingredients(generation)
        if generation.stage == "warmup":
            np.testing.assert_array_equal(
                [task.weights for task in generation.tasks], np.eye(num_objectives)
            )
        if generation.stage == "soup":
            assert generation.num_iterations == 0
            assert len(generation.tasks) == 6
            for task, shares in zip(generation.tasks, parts, strict=True):
                expected = [shares.get(policy_id(1, k), 0) for k in range(num_objectives)]
                assert expected == task.weights.tolist()
                assert sum(shares.values()) == pytest.approx(1)
                assert shares[task.policy] == max(shares.values())
        else:
            assert parts == [{task.policy: 1.0} for task in generation.tasks]
        evolution.tell(toy.train(generation, evolution))
    assert stages == ["warmup", "warmup", "soup", *["evolutionary"] * 8]
    assert evolution.num_generations == len(stages)
    # a blend is no improvement: the prediction model learns from trained offspring only
    assert len(evolution.history) == 2 * num_objectives + 8 * 6
    assert len(evolution.offspring) == 2 * num_objectives + 9 * 6
    assert policy_id(2, 5) in evolution.history


def test_a_soup_continues_with_fixed_weights_from_its_own_blends():
    objectives = make_objectives(2)
    evolution = make_evolution(objectives, start="soup", strategy="fixed_weights")
    generations = list(run(evolution, Toy(objectives)))
    soup, first, second = generations[3:6]
    assert (soup.stage, first.stage) == ("soup", "evolutionary")
    assert [task.policy for task in first.tasks] == [policy_id(3, slot) for slot in range(6)]
    weights = [[task.weights.tolist() for task in each.tasks] for each in (soup, second)]
    assert weights[0] == weights[1]


def test_asking_twice_and_telling_unasked_are_refused():
    objectives = make_objectives(2)
    evolution, toy = make_evolution(objectives), Toy(objectives)
    with pytest.raises(RuntimeError, match="tell without ask"):
        evolution.tell([])
    generation = evolution.ask()
    with pytest.raises(RuntimeError, match="generation 0 was asked for and not told"):
        evolution.ask()
    evolution.tell(toy.train(generation))
    with pytest.raises(RuntimeError, match="tell without ask"):
        evolution.tell([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parent": policy_id(0, 5)}, "parent='g000a5'"),
        ({"weights": np.array([0.3, 0.7])}, "its task has"),
        ({"generation": 4}, "says generation=4"),
        ({"policy": policy_id(0, 1)}, "name that is taken"),
    ],
)
def test_offspring_that_do_not_fit_their_task_are_refused_and_change_nothing(changes, message):
    objectives = make_objectives(2)
    evolution, toy = make_evolution(objectives), Toy(objectives)
    generation = evolution.ask()
    offspring = toy.train(generation)
    before = evolution.state()
    wrong = [dataclasses.replace(offspring[0], **changes), *offspring[1:]]
    with pytest.raises(ValueError, match=message):
        evolution.tell(wrong)
    with pytest.raises(ValueError, match="6 tasks but 5 offspring"):
        evolution.tell(offspring[:-1])
    assert evolution.state() == before
    evolution.tell(offspring)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_agents": 1}, "1 weight vectors for 2 objectives"),
        ({"strategy": "guess"}, "strategy='guess' is unknown; choose from"),
        ({"warmup_generations": 0, "evolutionary_generations": 0}, "one of them must be positive"),
        ({"warmup_generations": -1}, "not be negative"),
        ({"sparsity_coef": -0.1}, "sparsity_coef=-0.1"),
        ({"num_weight_candidates": 0}, "num_weight_candidates=0 must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        make_evolution(make_objectives(2), **changes)


def test_the_base_model_must_be_the_base_model():
    objectives = make_objectives(2)
    other = make_offspring(objectives, policy_id(0, 0), [0.1, 0.1], parent="base", generation=0)
    with pytest.raises(ValueError, match="base='g000a0'"):
        make_evolution(objectives, other)
    with pytest.raises(ValueError, match="3 returns"):
        make_evolution(objectives, make_base(make_objectives(3)))


# --- bookkeeping ----------------------------------------------------------------------------------


def test_a_record_starts_where_its_parent_was_evaluated_also_after_slots_are_reassigned():
    objectives = make_objectives(2)
    evolution, toy = make_evolution(objectives), Toy(objectives)
    returns, moved = {BASE_POLICY: make_base(objectives).returns}, 0
    for generation in run(evolution, toy):
        offspring = evolution.told[-1][1]
        returns |= {child.policy: child.returns for child in offspring}
        moved += sum(
            task.policy != policy_id(generation.index - 1, slot)
            for slot, task in enumerate(generation.tasks)
        )
    assert moved > 10
    assert len(evolution.history) == 11 * 6
    for record in evolution.history:
        np.testing.assert_array_equal(record.before, returns[record.parent])
        np.testing.assert_array_equal(record.after, returns[record.child])
        assert record.horizon == 5


def test_every_parent_was_alive_when_it_was_asked_for():
    objectives = make_objectives(3)
    evolution, toy = make_evolution(objectives), Toy(objectives)
    live = evolution.live_policies
    assert live == {BASE_POLICY}
    for generation in run(evolution, toy):
        assert {task.policy for task in generation.tasks} <= live
        live = evolution.live_policies
        held = {member.policy for member in (*evolution.archive, *evolution.population)}
        assert held <= live
    assert len(live) < len(evolution.history)


def test_the_base_model_stays_in_the_archive_while_nothing_beats_it():
    objectives = make_objectives(2)
    evolution = make_evolution(objectives)
    generation = evolution.ask()
    evolution.tell(
        [
            make_offspring(
                objectives,
                policy_id(0, slot),
                [0.9, 0.1 - slot],
                parent=BASE_POLICY,
                weights=task.weights,
                generation=0,
            )
            for slot, task in enumerate(generation.tasks)
        ]
    )
    assert [member.policy for member in evolution.archive] == [BASE_POLICY, "g000a0"]


def test_metrics_are_those_of_the_archive():
    objectives = make_objectives(2)
    evolution, toy = make_evolution(objectives), Toy(objectives)
    metrics = evolution.metrics()
    assert metrics["morl/hypervolume"] == pytest.approx(0.15**2)
    assert metrics["morl/expected_utility"] == pytest.approx(0.15)
    assert metrics["morl/archive_size"] == metrics["morl/population_size"] == 1.0
    assert not any("prediction_error" in key for key in metrics)
    for generation in run(evolution, toy):
        metrics = evolution.metrics()
        assert ("morl/prediction_error/f1" in metrics) == (generation.stage == "evolutionary")
    errors = [
        abs(to_z(task.predicted_returns, objectives) - to_z(child.returns, objectives))
        for task, child in zip(generation.tasks, evolution.told[-1][1], strict=True)
    ]
    assert metrics["morl/prediction_error/f1"] == pytest.approx(np.mean(errors, axis=0)[1])


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("num_objectives", [2, 3, 4])
def test_the_archive_never_loses_hypervolume(strategy, num_objectives):
    objectives = make_objectives(num_objectives)
    evolution = make_evolution(objectives, strategy=strategy)
    volumes = [evolution.metrics()["morl/hypervolume"] for _ in run(evolution, Toy(objectives))]
    assert (np.diff(volumes) >= -1e-12).all()


@pytest.mark.parametrize("num_objectives", [2, 3])
@pytest.mark.parametrize("start", ["even_weights", "soup"])
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_stopping_and_resuming_changes_no_decision(num_objectives, strategy, start):
    objectives = make_objectives(num_objectives)
    changes = {"strategy": strategy, "start": start, "seed": 7}
    through, stopped = (make_evolution(objectives, **changes) for _ in range(2))
    toy = Toy(objectives)
    whole = [decisions(generation) for generation in run(through, toy)]
    parts = []
    while (generation := stopped.ask()) is not None:
        text = json.dumps(stopped.state())  # in the middle of a generation: it is asked for again
        stopped = Evolution.restore(make_settings(**changes), objectives, json.loads(text))
        generation = stopped.ask()
        parts.append(decisions(generation))
        stopped.tell(toy.train(generation, stopped))
    assert parts == whole
    assert stopped.state() == through.state()
    assert stopped.metrics() == through.metrics()
    assert stopped.live_policies == through.live_policies


@pytest.mark.parametrize(
    "other", [{"num_agents": 5}, {"objectives": make_objectives(3)}, {"format": 2}]
)
def test_a_state_of_another_run_is_refused(other):
    objectives = make_objectives(2)
    state = make_evolution(objectives).state() | {k: v for k, v in other.items() if k == "format"}
    with pytest.raises(ValueError, match=f"saved search has {next(iter(other))}="):
        Evolution.restore(
            make_settings(num_agents=other.get("num_agents", 6)),
            other.get("objectives", objectives),
            state,
        )


def test_a_resumed_search_may_be_longer():
    objectives = make_objectives(2)
    evolution = make_evolution(objectives)
    list(run(evolution, Toy(objectives)))
    longer = Evolution.restore(
        make_settings(evolutionary_generations=9), objectives, evolution.state()
    )
    assert longer.ask().index == evolution.num_generations


def scaled(objectives, scale, shift):
    return tuple(
        Objective(name=o.name, unit="other", reference=o.reference * s + t, ideal=o.ideal * s + t)
        for o, s, t in zip(objectives, scale, shift, strict=True)
    )


@pytest.mark.parametrize("num_objectives", [2, 3, 4])
@pytest.mark.parametrize(("scale", "shift"), [(1000.0, 0.0), (1.0, 500.0), (0.37, -1e3)])
@pytest.mark.parametrize("strategy", ["prediction_guided", "moead"])
def test_units_and_constants_change_no_decision(num_objectives, scale, shift, strategy):
    kilobytes = make_objectives(num_objectives)
    others = scaled(
        kilobytes, [1.0, scale, *[scale] * (num_objectives - 2)], [shift] * num_objectives
    )
    for seed in range(2):
        runs = []
        for objectives in (kilobytes, others):
            evolution = make_evolution(
                objectives, seed=seed, strategy=strategy, evolutionary_generations=5
            )
            runs.append(
                [decisions(g) for g in run(evolution, Toy(objectives, seed))]
                + [[m.policy for m in evolution.archive]]
                + [[m.policy for m in evolution.population]]
            )
        assert runs[0] == runs[1]


def test_ties_fall_alike_in_every_unit():
    """Noiseless and symmetric, so that exact ties abound."""
    kilobytes = make_objectives(2)
    runs = []
    for objectives in (kilobytes, scaled(kilobytes, [3.7, 1024.0], [-11.3, 1e4])):
        evolution = make_evolution(objectives, make_base(objectives, noise=0.0))
        runs.append([decisions(g) for g in run(evolution, Toy(objectives, noise=0.0))])
    assert runs[0] == runs[1]


# --- degenerate inputs ----------------------------------------------------------------------------


@pytest.mark.parametrize(("num_agents", "num_objectives"), [(2, 2), (3, 2), (3, 3)])
@pytest.mark.parametrize("base_z", [0.15, 0.0, -1.0])
def test_few_agents_zero_and_negative_objectives_go_through(num_agents, num_objectives, base_z):
    objectives = make_objectives(num_objectives)
    evolution = make_evolution(
        objectives,
        make_base(objectives, base_z),
        num_agents=num_agents,
        evolutionary_generations=3,
    )
    stages = [g.stage for g in run(evolution, Toy(objectives, base_z=base_z))]
    assert stages == ["warmup"] * 3 + ["evolutionary"] * 3
    assert evolution.archive
    assert evolution.population


def test_equal_evaluations_of_everything_go_through():
    objectives = make_objectives(2)
    evolution = make_evolution(objectives)
    while (generation := evolution.ask()) is not None:
        assert len(generation.tasks) == 6
        evolution.tell(
            [
                make_offspring(
                    objectives,
                    policy_id(generation.index, slot),
                    [0.15, 0.15],
                    parent=task.policy,
                    weights=task.weights,
                    generation=generation.index,
                )
                for slot, task in enumerate(generation.tasks)
            ]
        )
    assert [member.policy for member in evolution.archive] == [BASE_POLICY]
    assert evolution.metrics()["morl/sparsity"] == 0.0


@given(
    num_objectives=st.integers(2, 5),
    seed=st.integers(0, 2**32 - 1),
    strategy=st.sampled_from(sorted(STRATEGIES)),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
)
@settings(max_examples=25, deadline=None)
def test_any_finite_returns_go_through(num_objectives, seed, strategy, scale):
    rng = np.random.default_rng(seed)
    objectives = make_objectives(num_objectives)
    evolution = make_evolution(
        objectives,
        strategy=strategy,
        warmup_generations=1,
        num_agents=5,
        evolutionary_generations=3,
        num_weight_candidates=3,
    )
    volume = 0.0
    while (generation := evolution.ask()) is not None:
        assert len(generation.tasks) == 5
        evolution.tell(
            [
                make_offspring(
                    objectives,
                    policy_id(generation.index, slot),
                    scale * rng.integers(-2, 3, size=num_objectives),
                    parent=task.policy,
                    weights=task.weights,
                    generation=generation.index,
                    noise=0.1 * rng.integers(2),
                )
                for slot, task in enumerate(generation.tasks)
            ]
        )
        metrics = evolution.metrics()
        assert np.isfinite(list(metrics.values())).all()
        assert metrics["morl/hypervolume"] >= volume * (1 - 1e-12)
        volume = metrics["morl/hypervolume"]
    assert len(evolution.population) >= 1


# --- it works -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_objectives", [2, 3])
def test_prediction_beats_random_on_a_known_front(num_objectives):
    objectives = make_objectives(num_objectives)
    wins = 0
    for seed in range(10):
        volumes = {}
        for strategy in ("prediction_guided", "random"):
            evolution, toy = (
                make_evolution(objectives, strategy=strategy, seed=seed),
                Toy(objectives, seed),
            )
            list(run(evolution, toy))
            volumes[strategy] = hypervolume(toy.true_archive_z(evolution))
            read = hypervolume(returns_in_z(evolution.archive, objectives))
            assert volumes[strategy] < (np.pi / 4 if num_objectives == 2 else np.pi / 6) < 1.0
            assert read == pytest.approx(evolution.metrics()["morl/hypervolume"])
        wins += volumes["prediction_guided"] > volumes["random"]
    assert wins >= 8


def test_excluded_policies_are_recorded_but_neither_archived_nor_parents():
    objectives = make_objectives(2)
    evolution, toy = make_evolution(objectives), Toy(objectives)
    excluded = set()
    while (generation := evolution.ask()) is not None:
        if generation.stage == "evolutionary":
            assert not excluded & {task.policy for task in generation.tasks}
        offspring = toy.train(generation)
        excluded |= {child.policy for child in offspring[::2]}
        evolution.tell(offspring, {child.policy for child in offspring[::2]})
        admitted = {o.policy for o in (*evolution.archive, *evolution.population)}
        assert not admitted & excluded
        assert excluded <= {record.child for record in evolution.history}
    state = json.loads(json.dumps(evolution.state()))
    again = Evolution.restore(make_settings(), objectives, state)
    assert [o.policy for o in again.archive] == [o.policy for o in evolution.archive]
    assert [o.policy for o in again.population] == [o.policy for o in evolution.population]


def test_a_search_whose_offspring_are_all_excluded_goes_on_from_the_base_model():
    objectives = make_objectives(2)
    evolution, toy = make_evolution(objectives), Toy(objectives)
    while (generation := evolution.ask()) is not None:
        offspring = toy.train(generation)
        evolution.tell(offspring, {child.policy for child in offspring})
    assert [o.policy for o in evolution.archive] == [BASE_POLICY]
    assert {task.policy for task in generation_tasks(evolution)} == {BASE_POLICY}


def generation_tasks(evolution):
    return evolution.told[-1][0].tasks
