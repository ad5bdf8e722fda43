"""Small checkpoints."""

from __future__ import annotations

import torch

from ddpo.types import Policy, PromptStatistics


def policy(seed):
    generator = torch.Generator().manual_seed(seed)
    adapter, first, second = torch.randn(3, 20, generator=generator).unbind()
    statistics = PromptStatistics().add(["a", "b"], torch.rand(2, 2, generator=generator), 4)
    return Policy(
        adapter=adapter, exp_avg=first, exp_avg_sq=second.abs(), step=seed, statistics=statistics
    )


def commit(store, generation, names):
    for name in names:
        store.save_policy(name, policy(len(name) + generation))
    store.commit(generation, {"n": generation}, names, {"images": 10 * generation}, {"torch": "2"})


def assert_equal(first, second):
    for name in ("adapter", "exp_avg", "exp_avg_sq"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.step == second.step
    assert first.statistics == second.statistics
