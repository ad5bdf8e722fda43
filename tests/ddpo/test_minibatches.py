"""Minibatches: every pair once per epoch, shares of processes that fit together."""

from __future__ import annotations

import pytest
import torch

from ddpo.minibatches import draw_minibatches, pairs_per_update, passes
from ddpo.processes import Share
from tests.support.rig import make_settings


def train_settings(**changes):
    return make_settings(train=changes, sample={"prompts_per_iteration": 8}).train


def test_every_pair_is_used_once_per_inner_epoch():
    settings = train_settings(num_inner_epochs=2, updates_per_epoch=4)
    share = Share.of(0, 1, num_agents=1, num_samples=8)
    batches = draw_minibatches(share, range(4), [4], settings)
    assert len(batches) == 8
    for epoch in (batches[:4], batches[4:]):
        pairs = torch.cat(epoch, dim=1)[0].tolist()
        assert sorted(map(tuple, pairs)) == [(i, j) for i in range(8) for j in range(4)]


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.1])
def test_minibatches_have_the_number_of_pairs_that_the_mean_is_taken_over(fraction):
    settings = train_settings(updates_per_epoch=2, timestep_fraction=fraction)
    share = Share.of(0, 1, num_agents=3, num_samples=8)
    for pairs in draw_minibatches(share, [0, 2, 3], [1, 2, 3], settings):
        assert pairs.shape == (3, pairs_per_update(settings, 8, 3), 2)
        assert set(pairs[..., 1].flatten().tolist()) <= {0, 2, 3}


def test_shares_of_processes_together_are_the_minibatches_of_one():
    settings = train_settings(updates_per_epoch=2)
    whole = draw_minibatches(Share.of(0, 1, num_agents=1, num_samples=8), range(4), [5], settings)
    parts = [
        Share.of(rank, 2, num_agents=1, num_samples=8, block=settings.updates_per_epoch)
        for rank in range(2)
    ]
    drawn = [draw_minibatches(share, range(4), [5], settings) for share in parts]
    for number, pairs in enumerate(whole):
        joined = [
            (sample + share.samples.start, step)
            for share, batches in zip(parts, drawn, strict=True)
            for sample, step in batches[number][0].tolist()
        ]
        assert joined == [tuple(pair) for pair in pairs[0].tolist()]


def test_passes_are_agent_major_rows_of_the_rollout():
    pairs = torch.tensor([[[0, 5], [1, 6], [2, 7]], [[2, 8], [1, 9], [0, 4]]])
    found = [(rows.tolist(), steps.tolist()) for rows, steps in passes(pairs, 3, 2)]
    assert found == [([0, 1, 5, 4], [5, 6, 8, 9]), ([2, 3], [7, 4])]
