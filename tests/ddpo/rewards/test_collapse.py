"""Agents that draw the same thing over and over are noticed."""

from __future__ import annotations

import torch

from ddpo.rewards.collapse import CollapseWatch, without_variance
from ddpo.types import RewardBatch
from tests.support.rig import make_rig

PROMPTS = ["a", "a", "b", "b"]


def test_only_agents_without_any_difference_within_a_prompt_have_collapsed():
    rewards = torch.tensor(
        [
            [[1.0, 5.0], [1.0, 5.0], [2.0, 6.0], [2.0, 6.0]],  # differs between prompts only
            [[1.0, 5.0], [1.0, 5.0], [2.0, 6.0], [2.0, 6.1]],
            [[1.0, 5.0]] * 4,
            [[torch.nan, 5.0]] * 4,
        ]
    )
    assert without_variance(rewards, PROMPTS).tolist() == [True, False, True, True]
    assert without_variance(rewards, list("abcd")).tolist() == [False] * 4


def test_a_collapsed_agent_is_reported_once_per_generation(caplog):
    rig = make_rig(2)
    rollout = rig.rollout(rig.batch(2, 4))
    rollout.images[:4] = 0.5  # agent 0
    values = torch.rand(2, 4, 2)
    values[0] = 1.0
    rewards = RewardBatch(objectives=("x", "y"), values=values)
    watch = CollapseWatch()
    texts = [*PROMPTS]
    for generation in (3, 3, 4):
        assert watch.look(generation, rewards, texts, rollout, range(2)) == 1
    assert len(caplog.records) == 2
    assert "agent 0 has collapsed in generation 3: its images are identical" in caplog.text
    assert "in generation 4" in caplog.text
    values[1] = 2.0
    assert watch.look(4, rewards, texts, rollout, range(2)) == 2
    assert "agent 1 has collapsed in generation 4: its rewards do not vary" in caplog.text
