"""The program with a conditioned adapter: its archive, and resuming after a stop."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

import ddpo.trainer
import mo_front
from ddpo.agents.adapter import Adapter, adapter_of, save_adapter
from ddpo.agents.conditioned import ConditionedAgents
from front import Front
from front.errors import ChoiceError, FrontError
from morl.weights import even_weights
from run.checkpoint import CheckpointStore
from tests.support.families import family_rig
from tests.support.pipelines import draw_with_diffusers, make_tiny_pipe
from tests.support.worlds import report_colorfulness, run_program, small_world, timeless_metrics

CONDITIONED = (
    "agents.kind=conditioned",
    "evolution.strategy=fixed_weights",
    "evolution.num_agents=3",
    "evolution.iterations_per_generation=2",
    "train.updates_per_epoch=4",
    "train.num_inner_epochs=1",
    "adapter.rank=2",
    "adapter.alpha=3.0",
    "evaluation.blends_fraction=0.1",
)


@pytest.fixture(scope="module", name="world")
def _world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    words = small_world(folder)

    def run(*overrides):
        run_program(words, *CONDITIONED, *overrides)
        return folder / "logs"

    return run


@pytest.fixture(scope="module", name="finished")
def _finished(world):
    return world("run_name=whole") / "whole"


def read(path):
    return json.loads(path.read_text())


def test_offspring_are_members_of_one_family_at_even_weights(finished):
    """The middle one follows from the two at the vertices: A is shared, B is affine in w."""
    search = read(finished / "search.json")
    store = CheckpointStore(finished)
    for generation in search["generations"]:
        weights = [child["weights"] for child in generation["offspring"]]
        np.testing.assert_array_equal(weights, even_weights(3, 2))
        second, middle, first = (
            store.load_policy(child["policy"]) for child in generation["offspring"]
        )
        assert first.step == middle.step == second.step > 0
        assert torch.equal(first.exp_avg, second.exp_avg)
        torch.testing.assert_close(middle.adapter, (first.adapter + second.adapter) / 2)
        assert (first.adapter - second.adapter).norm() > 0.1
    assert len(search["generations"]) == 2


def test_the_family_resumes_where_it_was(finished):
    """Twice as many optimiser steps after the second generation, from the first's moments."""
    generations = read(finished / "search.json")["generations"]
    store = CheckpointStore(finished)
    steps = [store.load_policy(g["offspring"][0]["policy"]).step for g in generations]
    assert steps == [8, 16]  # two iterations of four updates each
    parents = [task["policy"] for task in generations[1]["generation"]["tasks"]]
    assert parents == [child["policy"] for child in generations[0]["offspring"]]


def test_an_archived_member_is_an_ordinary_adapter_that_draws_what_it_was_judged_by(finished):
    front = Front.load(finished)
    member = next(policy for policy in front.policies if policy.id != "base")
    adapter = Adapter.of(member)
    assert (adapter.rank, adapter.alpha) == (6, 9.0)  # M + 1 = 3 parts
    pipe = make_tiny_pipe()
    pipe.load_lora_weights(member.adapter)
    assert report_colorfulness(pipe) == pytest.approx(member.report_returns[0], rel=1e-5)


@pytest.fixture(name="siblings")
def _siblings(finished, tmp_path):
    """A front whose policies are three members of one family, and that family."""
    rig = family_rig(3)
    template = Front.load(finished).policies[0]
    policies = []
    for slot, weights in enumerate(even_weights(3, 2)):
        folder = tmp_path / f"m{slot}"
        rig.agents.show(torch.from_numpy(weights)[None])
        save_adapter(rig.agents, rig.agents.snapshot(0), folder)
        policies.append(
            dataclasses.replace(
                template, id=f"m{slot}", generation=4, weights=weights, adapter=folder
            )
        )
    return dataclasses.replace(Front.load(finished), policies=tuple(policies)), rig.agents


@pytest.mark.parametrize("kept", [(0, 1, 2), (0, 1), (1, 2)])
@pytest.mark.parametrize("weights", [(0.3, 0.7), (0.9, 0.1), (0.5, 0.5)])
def test_the_member_at_any_weights_comes_from_a_front_of_a_few(siblings, kept, weights):
    """Between archived members and beyond them, as one adapter of a member's rank."""
    front, agents = siblings
    front = dataclasses.replace(front, policies=tuple(front.policies[i] for i in kept))
    member = front.member(weights)
    agents.show(torch.tensor([weights]))
    expected, found = adapter_of(agents, agents.snapshot(0)), Adapter.of(member)
    assert (found.rank, found.alpha) == (expected.rank, expected.alpha)
    assert len(member.parts) <= 2
    for layer in agents.layer_names:
        torch.testing.assert_close(
            found.update(layer), expected.update(layer), rtol=1e-4, atol=1e-6
        )


def test_the_newest_family_that_suffices_is_taken(siblings):
    front, _ = siblings
    old = [dataclasses.replace(each, id=f"old{each.id}", generation=2) for each in front.policies]
    new = dataclasses.replace(front.policies[1], id="new", generation=5)
    front = dataclasses.replace(front, policies=(*old, new, *front.policies))
    assert {policy.id for policy, _ in front.member((0.3, 0.7)).parts} == {"m0", "m1"}
    assert [policy.id for policy, _ in front.member((0.5, 0.5)).parts] == ["new"]


def test_a_member_that_cannot_be_had_is_refused(siblings):
    front, _ = siblings
    lonely = dataclasses.replace(front, policies=front.policies[:1])
    with pytest.raises(FrontError, match="it needs 2 policies of one generation"):
        lonely.member((0.3, 0.7))
    with pytest.raises(ChoiceError, match="must sum to 1"):
        front.member((0.3, 0.3))
    for settings in ({"agents": {"kind": "population"}}, {}):
        config = dataclasses.replace(front.config, settings=settings)
        with pytest.raises(ChoiceError, match="adapters of their own"):
            dataclasses.replace(front, config=config).member((0.3, 0.7))


def test_the_command_exports_a_member(siblings, monkeypatch, tmp_path, capsys):
    front, agents = siblings
    monkeypatch.setattr(Front, "load", lambda _: front)
    words = ["export", str(front.path), "--member", "--out", str(tmp_path / "out")]
    assert mo_front.main([*words, "--weights", "0.3,0.7"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "an exact blend of 0.4 m0 and 0.6 m1" in " ".join(card.split())
    agents.show(torch.tensor([[0.3, 0.7]]))
    batch = ["a", "b"], [1, 2]
    pipe, exact = make_tiny_pipe(), make_tiny_pipe()
    pipe.load_lora_weights(tmp_path / "out")
    save_adapter(agents, agents.snapshot(0), tmp_path / "exact")
    exact.load_lora_weights(tmp_path / "exact")
    torch.testing.assert_close(
        draw_with_diffusers(pipe, *batch), draw_with_diffusers(exact, *batch)
    )
    assert mo_front.main([*words, "--policy", "m1"]) == 2
    assert "--member goes with --weights alone" in capsys.readouterr().err


def test_every_iteration_learns_along_weights_of_its_own(world, monkeypatch):
    """Advantages follow the weights that the members shown were drawn at."""
    seen, shown = [], []
    advantages, show = ddpo.trainer.advantages, ConditionedAgents.show

    def spying(rewards, weights, *rest, **options):
        seen.append(weights.tolist())
        return advantages(rewards, weights, *rest, **options)

    def showing(agents, weights):
        shown.append(weights.tolist())
        show(agents, weights)

    monkeypatch.setattr(ddpo.trainer, "advantages", spying)
    monkeypatch.setattr(ConditionedAgents, "show", showing)
    world("run_name=spied", "evolution.evolutionary_generations=0")
    even = even_weights(3, 2).tolist()
    assert shown[1:] == [even, *seen, even]  # loaded, two iterations, evaluated
    assert len(seen) == 2
    assert seen[0] != seen[1]
    assert even not in seen


def test_stop_and_resume_equal_an_uninterrupted_run(world, finished):
    logs = world("run_name=parts", "evolution.evolutionary_generations=0")
    world(f"resume_from={logs / 'parts'}", "evolution.evolutionary_generations=1")
    for name in ("front.json", "history.json", "search.json"):
        assert read(logs / "parts" / name) == read(finished / name)
    names = [path.name for path in (finished / "policies").iterdir()]
    assert len(names) > 3
    for name in names:
        parts = [folder / "policies" / name for folder in (logs / "parts", finished)]
        assert parts[0].read_bytes() == parts[1].read_bytes()
    lines = [
        timeless_metrics((folder / "metrics.jsonl").read_text())
        for folder in (logs / "parts", finished)
    ]
    assert all(one == other for one, other in itertools.zip_longest(*lines))


def test_a_run_of_one_kind_is_not_continued_as_the_other(world, finished):
    with pytest.raises(Exception, match=r"agents\.kind was 'conditioned' and is 'population' now"):
        world(f"resume_from={finished}", "agents.kind=population")
