"""Scoring off the main thread, and rewards that misbehave."""

from __future__ import annotations

import threading

import pytest
import torch

from ddpo.evaluation import EvaluationSet, evaluate
from ddpo.scorer import RewardError, Scorer, collect
from tests.conftest import make_rig


def brightness(images, prompts):
    return images.mean(dim=(1, 2, 3))


def test_rewards_come_back_agent_major_and_in_the_order_of_the_objectives():
    rig = make_rig(2, sample={"rows_per_pass": 8})  # two samples per agent and pass
    rig.perturb()
    scorer = Scorer({"bright": brightness, "red": lambda images, _: images[:, 0].mean(dim=(1, 2))})
    rollout, rewards = collect(rig.sampler, scorer, rig.agents, rig.batch(2, 5))
    assert rewards.objectives == ("bright", "red")
    expected = torch.stack([brightness(rollout.images, ()), rollout.images[:, 0].mean(dim=(1, 2))])
    torch.testing.assert_close(rewards.values, expected.T.reshape(2, 5, 2))


def test_rewards_run_outside_the_main_thread():
    names = []

    def reward(images, prompts):
        names.append(threading.current_thread().name)
        return brightness(images, prompts)

    rig = make_rig(1)
    collect(rig.sampler, Scorer({"r": reward}), rig.agents, rig.batch(1, 2))
    assert all(name.startswith("reward") for name in names)


def failing(images, prompts):
    raise KeyError("no such model")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda images, _: images.mean(), r"'r': expected a tensor \(2,\), got \(\)"),
        (lambda images, _: [0.0] * len(images), "got list"),
        (lambda images, _: torch.full((len(images),), torch.nan), "2 of 2 scores are not finite"),
        (failing, "'r' failed on 2 images: KeyError"),
    ],
)
def test_a_bad_reward_is_named(reward, message):
    rig = make_rig(1)
    with pytest.raises(RewardError, match=message):
        collect(rig.sampler, Scorer({"r": reward}), rig.agents, rig.batch(1, 2))


def test_evaluation_is_paired_across_policies_and_independent_of_grouping():
    rig = make_rig(2, sample={"rows_per_pass": 12})
    base = rig.agents.snapshot(0)
    rig.perturb()
    policies = [base, rig.agents.snapshot(0), base]
    scorer = Scorer({"bright": brightness})
    on = EvaluationSet.make("selection", ["a", "b"], 5, run_seed=3)
    results = evaluate(policies, on, rig.sampler, scorer, rig.agents, keep_images=4)
    torch.testing.assert_close(results[0].rewards, results[2].rewards, rtol=0, atol=1e-5)
    assert results[0].images.shape == (4, 3, 16, 16)
    gain, error = results[1].gain_over(results[0])
    difference = results[1].rewards - results[0].rewards
    assert gain.item() == pytest.approx(difference.mean().item(), rel=1e-5)
    assert error.item() == pytest.approx(difference.std().item() / 5**0.5, rel=1e-4)
    assert gain.abs() > 0


def test_evaluation_sets_share_no_seed():
    sets = [EvaluationSet.make(p, ["a"], 50, 0) for p in ("calibration", "selection", "report")]
    seeds = {seed for one in sets for seed in one.seeds}
    assert len(seeds) == 150
