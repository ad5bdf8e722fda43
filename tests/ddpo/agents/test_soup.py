"""Blends of policies, from which training continues."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ddpo.agents.adapter import adapter_of
from ddpo.agents.soup import blend_policies
from tests.support.rig import make_rig


def perturbed(agents, seed, columns):
    """A policy whose updates have as many dimensions as `columns`, at most 4."""
    policy = agents.initial_policy()
    flat = policy.adapter.clone()
    generator = torch.Generator().manual_seed(seed)
    for layer in agents.layer_names:
        a, b = agents.matrices(flat, layer)
        a += 0.01 * torch.randn(a.shape, generator=generator)
        b[:, :columns] = 0.1 * torch.randn(b[:, :columns].shape, generator=generator)
    return dataclasses.replace(policy, adapter=flat, step=5)


def updates(agents, policy):
    adapter = adapter_of(agents, policy)
    return {layer: adapter.update(layer) for layer in agents.layer_names}


@pytest.mark.parametrize("alpha", [4.0, 6.0])
def test_a_blend_that_fits_the_rank_is_exact(alpha):
    agents = make_rig(2, adapter={"alpha": alpha}).agents
    first, second = perturbed(agents, 1, columns=2), perturbed(agents, 2, columns=2)
    blend = blend_policies(agents, [(first, 0.3), (second, 0.7)])
    wholes = [updates(agents, policy) for policy in (first, second, blend)]
    for one, other, found in zip(*(whole.values() for whole in wholes), strict=True):
        torch.testing.assert_close(found, 0.3 * one + 0.7 * other, rtol=1e-5, atol=1e-6)
    assert blend.step == 0
    assert not blend.exp_avg.any()


def test_a_blend_beyond_the_rank_says_how_far_it_is(caplog):
    agents = make_rig(2).agents
    caplog.set_level("INFO", logger="ddpo.agents.soup")
    blend_policies(agents, [(perturbed(agents, k, columns=4), 0.5) for k in (1, 2)])
    assert "a blend of 2 policies to rank 4: error" in caplog.text


def test_a_single_ingredient_is_the_policy_itself():
    agents = make_rig(2).agents
    policy = perturbed(agents, 1, columns=4)
    assert blend_policies(agents, [(policy, 1.0)]) is policy


def test_the_blend_of_untrained_policies_is_a_fresh_adapter():
    agents = make_rig(2).agents
    initial = agents.initial_policy()
    blend = blend_policies(agents, [(initial, 0.5), (initial, 0.5)])
    assert not any(update.any() for update in updates(agents, blend).values())
    for layer in agents.layer_names:
        a, _ = agents.matrices(blend.adapter, layer)
        assert (a.norm(dim=1) > 0.2).all()  # every direction can still be learnt


def test_a_blend_learns_at_a_fresh_adapters_pace():
    agents = make_rig(2).agents
    blend = blend_policies(agents, [(perturbed(agents, k, columns=2), 0.5) for k in (1, 2)])
    for layer in agents.layer_names:
        a, _ = agents.matrices(blend.adapter, layer)
        torch.testing.assert_close(a.norm(dim=1), torch.full((4,), 3**-0.5))
