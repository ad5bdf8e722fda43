"""One reward, or one agent along given weights: everything but a front of many policies."""

from __future__ import annotations

import json

import numpy as np
import pytest

from front.describe import front_text
from front.front import Front
from front.serve import POLICY, Studio
from mo_front import main as front_command
from run.command_line import read_settings
from tests.support.paths import ROOT
from tests.support.worlds import run_program, small_world, timeless_metrics

ONE = ("rewards.names=colorfulness",)
ALONG = ("rewards.names=colorfulness,jpeg_compressibility", "evolution.weights=1,0")


@pytest.fixture(scope="module", name="train")
def _train(tmp_path_factory):
    """A function that runs the program with one agent; returns the run directory."""
    folder = tmp_path_factory.mktemp("one")
    words = small_world(folder)
    fixed = ("evolution.num_agents=1", "evolution.strategy=fixed_weights")

    def run(name, *changes, **options):
        run_program(words, *fixed, f"run_name={name}", *changes, **options)
        return folder / "logs" / name

    return run


@pytest.fixture(scope="module", name="finished")
def _finished(train):
    return train("one", *ONE, with_plots=True)


def test_one_reward_leaves_one_policy_and_says_return_in_place_of_hypervolume(finished, capsys):
    front = Front.load(finished)
    (policy,) = front.policies
    assert policy.weights.tolist() == [1.0]
    assert front.z.shape == (1, 1)
    assert front.hypervolume == pytest.approx(front.z[0, 0])  # of one objective, a length
    for name in ("front.png", "hypervolume.png", "samples.png", "report.html"):
        assert (finished / name).stat().st_size > 1000
    assert "return   " in front_text(front)
    assert "hypervolume" not in front_text(front)
    metrics = timeless_metrics((finished / "metrics.jsonl").read_text())
    assert not any("morl/sparsity" in line for line in metrics)
    out = finished / "out"
    assert front_command(["export", str(finished), "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "trained by reinforcement learning for one reward" in card
    assert "Hypervolume" not in card
    assert "Pareto" not in card
    studio = Studio(front, None)
    assert studio.choose(POLICY, "").id == policy.id
    studio.close()
    capsys.readouterr()


@pytest.mark.slow
def test_its_continuation_equals_an_uninterrupted_run(train, finished):
    """The same, bit for bit, drawn by LCM's steps."""
    changes = (ONE[0], "sample.sampler=lcm")
    whole = train("whole", *changes)
    parts = train("parts", *changes, "evolution.evolutionary_generations=0")
    run_program([], f"resume_from={parts}", "evolution.evolutionary_generations=1")
    for name in ("front.json", "history.json", "search.json"):
        assert (parts / name).read_text() == (whole / name).read_text()
    assert json.loads((parts / "front.json").read_text()) != json.loads(
        (finished / "front.json").read_text()
    )


def test_all_weight_on_one_of_two_rewards_trains_what_that_reward_alone_trains(train, finished):
    both = train("along", *ALONG)
    children = [
        json.loads((run / "search.json").read_text())["generations"] for run in (finished, both)
    ]
    for alone, along in zip(*children, strict=True):
        (first,), (second,) = alone["offspring"], along["offspring"]
        assert second["weights"] == [1.0, 0.0]
        assert first["returns"] == second["returns"][:1]


def test_the_named_weights_are_what_agents_are_trained_along():
    from morl.weights import wanted_weights

    words = [f"--config={ROOT / 'config' / 'base.py'}", "--config.evolution.num_agents=2"]
    settings = read_settings([*words, "--config.evolution.weights=3,1,0,2"])
    expected = [[0.75, 0.25], [0.0, 1.0]]
    np.testing.assert_array_equal(wanted_weights(settings.evolution, 2), expected)
