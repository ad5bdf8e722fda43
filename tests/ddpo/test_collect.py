"""Pictures are scored while the next are drawn."""

from __future__ import annotations

import threading

import torch

from ddpo.collect import collect
from ddpo.rewards.scorer import Scorer
from tests.support.pipelines import of_8_bits
from tests.support.rewards import brightness
from tests.support.rig import make_rig


def test_rewards_come_back_agent_major_and_in_the_order_of_the_objectives():
    rig = make_rig(2, sample={"rows_per_pass": 8})  # two samples per agent and pass
    rig.perturb()
    scorer = Scorer({"bright": brightness, "red": lambda images, _: images[:, 0].mean(dim=(1, 2))})
    rollout, rewards = collect(rig.sampler, scorer, rig.agents, rig.batch(2, 5))
    assert rewards.objectives == ("bright", "red")
    saved = of_8_bits(rollout.images)
    expected = torch.stack([brightness(saved, ()), saved[:, 0].mean(dim=(1, 2))])
    torch.testing.assert_close(rewards.values, expected.T.reshape(2, 5, 2))


def test_rewards_run_outside_the_main_thread():
    names = []

    def reward(images, prompts):
        names.append(threading.current_thread().name)
        return brightness(images, prompts)

    rig = make_rig(1)
    collect(rig.sampler, Scorer({"r": reward}), rig.agents, rig.batch(1, 2))
    assert all(name.startswith("reward") for name in names)
