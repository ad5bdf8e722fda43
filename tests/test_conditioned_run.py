"""The program with a conditioned adapter: what it archives, and going on after a stop."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

import ddpo.trainer
from ddpo.conditioned import ConditionedAgents
from ddpo.evaluation import EvaluationSet
from ddpo.rewards.colorfulness import colorfulness
from front import Front
from front.adapter import Adapter
from front.checkpoint import CheckpointStore
from mo_loop import Run
from mo_train import read_settings
from morl.weights import even_weights
from tests.conftest import draw_with_diffusers, make_tiny_pipe, small_world, timeless_metrics

CONDITIONED = (
    "agents.kind=conditioned",
    "evolution.strategy=fixed_weights",
    "evolution.num_agents=3",
    "evolution.iterations_per_generation=2",
    "adapter.rank=2",
    "adapter.alpha=3.0",
)


@pytest.fixture(scope="module", name="world")
def _world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    words = small_world(folder)

    def run(*overrides):
        changes = (*CONDITIONED, *overrides)
        Run(read_settings([*words, *(f"--config.{change}" for change in changes)])).train()
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


def test_the_family_goes_on_where_it_was(finished):
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
    on = EvaluationSet.make("report", ["e", "f"], 16, run_seed=0)
    images = draw_with_diffusers(pipe, on.prompts, on.seeds, guidance_scale=1.0)
    mean = colorfulness(images, on.prompts).mean().item()
    assert mean == pytest.approx(member.report_returns[0], rel=1e-4)


def test_every_iteration_learns_along_weights_of_its_own(world, monkeypatch):
    """Advantages follow the weights that the members shown were drawn at."""
    seen, shown = [], []
    advantages, show = ddpo.trainer.advantages, ConditionedAgents.show

    def spying(rewards, weights, *rest):
        seen.append(weights.tolist())
        return advantages(rewards, weights, *rest)

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
