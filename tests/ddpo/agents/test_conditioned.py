"""The conditioned family: members are what the formula says, and one step moves them all."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from config.settings.errors import ConfigError
from ddpo.agents.adam import BETAS
from ddpo.agents.adapter import Adapter, adapter_of, save_adapter
from ddpo.agents.conditioned import stratified_weights
from tests.support.families import even, family_rig, members
from tests.support.pipelines import draw_without_and_with, make_tiny_pipe
from tests.support.rig import make_rig, make_settings


def train(rig, generation=0):
    """A rollout and its optimiser steps along new random weights, with made-up advantages."""
    num_agents = rig.agents.num_agents
    rig.agents.draw_directions(even(num_agents), generation)
    rollout = rig.rollout(rig.batch(num_agents, 4))
    advantages = torch.randn(num_agents, 4, generator=torch.Generator().manual_seed(generation))
    return rig.updater.update(rig.agents, rollout, advantages, list(range(num_agents)))


@pytest.mark.parametrize("num_objectives", [2, 3])
def test_a_member_is_the_sum_of_the_parts_times_its_weights(num_objectives):
    """dW(w) = alpha / r (B0 A0 + sum_k 2 w_k Bk Ak), on every layer, as an ordinary LoRA."""
    rank, alpha = 2, 3.0
    rig = family_rig(6, num_objectives=num_objectives, adapter={"rank": rank, "alpha": alpha})
    agents = rig.agents
    weights = torch.tensor([0.2, 0.5, 0.3][: num_objectives - 1])
    weights = torch.cat([weights, 1 - weights.sum()[None]])
    (policy,) = members(agents, weights[None])
    adapter = adapter_of(agents, policy)
    assert (adapter.rank, adapter.alpha) == (
        (num_objectives + 1) * rank,
        (num_objectives + 1) * alpha,
    )
    for layer in agents.layer_names:
        a, b = agents.matrices(agents.family[0], layer)
        parts = zip([0.5, *weights.tolist()], b.split(rank, 1), a.split(rank, 0), strict=True)
        expected = sum(2 * w * b_k @ a_k for w, b_k, a_k in parts) * alpha / rank
        assert expected.norm() > 0
        torch.testing.assert_close(adapter.update(layer), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_sees_what_the_family_has_become(dtype):
    rig = family_rig(3, make_tiny_pipe().to(dtype))
    conditioning = rig.batch(3, 1).conditioning
    latents = torch.randn(3, *rig.model.latent_shape)
    seen = []
    with torch.no_grad():
        for change in (
            None,
            lambda: rig.agents.step(1.0),
            lambda: rig.agents.draw_directions(even(3), 1),
        ):
            if change is not None:
                rig.agents.gradients.fill_(1)
                change()
            seen.append(rig.agents.predict(latents, torch.tensor(500), conditioning, 3))
    assert not torch.equal(seen[1], seen[0])
    assert not torch.equal(seen[2], seen[1])


def test_the_family_starts_as_the_base_model():
    pipe = make_tiny_pipe()
    plain = make_rig(2, make_tiny_pipe())
    rig = make_rig(2, pipe, agents={"kind": "conditioned"}, evolution={"strategy": "fixed_weights"})
    batch = rig.batch(2, 2)
    assert torch.equal(rig.rollout(batch).images, plain.rollout(batch).images)
    for layer in rig.agents.layer_names:
        a, b = rig.agents.matrices(rig.agents.family[0], layer)
        assert (a.norm(dim=1) > 0.2).all()  # all M + 1 parts can learn
        assert not b.any()


@pytest.mark.parametrize("num_objectives", [2, 3])
def test_the_family_comes_back_from_its_members_to_the_bit(num_objectives):
    weights = even(4, num_objectives)
    rig = family_rig(4, num_objectives=num_objectives)
    if num_objectives == 2:
        train(rig)
    agents = rig.agents
    agents.load_tasks(members(agents, weights), weights)
    family, policies = agents.family.clone(), agents.snapshot_tasks()
    agents.family.zero_()
    agents.load_tasks(policies, weights)
    assert torch.equal(agents.family, family)
    for before, after in zip(policies, agents.snapshot_tasks(), strict=True):
        assert torch.equal(before.adapter, after.adapter)
        assert torch.equal(before.exp_avg, after.exp_avg)
        assert torch.equal(before.exp_avg_sq, after.exp_avg_sq)
        assert before.step == after.step


def test_policies_that_are_no_whole_family_are_refused():
    agents = family_rig(2).agents
    with pytest.raises(ValueError, match="must contain the vertices"):
        agents.load_tasks(agents.snapshot_tasks(), torch.tensor([[0.9, 0.1], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="another model, rank"):
        agents.load_tasks(family_rig(2, adapter={"rank": 2}).agents.snapshot_tasks(), even(2))


def test_the_gradient_is_that_of_the_mean_loss_of_the_members():
    """Against finite differences of a loss of the family, in float64, entry by entry."""
    rig = family_rig(2, make_tiny_pipe().to(torch.float64), adapter={"rank": 4})
    agents = rig.agents
    weights = torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    batch = rig.batch(2, 1)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def loss():
        out = agents.predict(x, torch.tensor(500).expand(2), batch.conditioning, 2)
        return out.square().sum(dim=(1, 2, 3))

    agents.show(weights)
    agents.zero_grad()
    loss().sum().backward()
    before = agents.family.clone()
    agents.step(1e9)
    gradient = agents.snapshot(0).exp_avg / (1 - BETAS[0])
    agents.family.copy_(before)
    layer, step = agents.layer_names[1], 1e-5
    for matrix, entry in ((0, (0, 1)), (0, (9, 2)), (1, (0, 1)), (1, (2, 5)), (1, (3, 10))):
        losses = []
        for change in (step, -step):
            agents.matrices(agents.family[0], layer)[matrix][entry] += change
            agents.show(weights)
            with torch.no_grad():
                losses.append(loss().mean().item())
            agents.matrices(agents.family[0], layer)[matrix][entry] -= change
        expected = (losses[0] - losses[1]) / (2 * step)
        found = agents.matrices(gradient, layer)[matrix][entry].item()
        assert abs(expected) > 1e-6
        assert found == pytest.approx(expected, rel=1e-5)


def test_slots_of_equal_weights_train_as_one():
    """Two slots with the same weights and rows move the family as one slot does."""
    families = []
    for num_agents in (1, 2):
        rig = family_rig(2, make_tiny_pipe().to(torch.float64))
        rig.agents.show(torch.tensor([[0.3, 0.7]] * num_agents))
        one = rig.batch(1, 4)
        batch = rig.sampler.prompt_batch(one.texts * num_agents, one.seeds * num_agents, num_agents)
        advantages = torch.tensor([[1.0, -0.5, 0.25, -2.0]] * num_agents)
        before = rig.agents.family.clone()
        rig.updater.update(rig.agents, rig.rollout(batch), advantages, [1] * num_agents)
        families.append(rig.agents.family)
        assert (families[-1] - before).norm() > 0.01
    torch.testing.assert_close(families[0], families[1], rtol=0, atol=1e-9)


def test_at_a_vertex_the_parts_of_other_objectives_stay():
    """All slots at w = (1, 0): B_2 has no gradient, and A_2 none either."""
    rig = family_rig(2)
    agents = rig.agents
    before = agents.family.clone()
    agents.show(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    rollout = rig.rollout(rig.batch(2, 4))
    rig.updater.update(agents, rollout, torch.randn(2, 4), [1, 2])
    rank = rig.settings.adapter.rank
    for layer in agents.layer_names:
        a, b = agents.matrices(before[0], layer)
        new_a, new_b = agents.matrices(agents.family[0], layer)
        assert torch.equal(a[2 * rank :], new_a[2 * rank :])
        assert torch.equal(b[:, 2 * rank :], new_b[:, 2 * rank :])
        assert not torch.equal(a[: 2 * rank], new_a[: 2 * rank])
        assert not torch.equal(b[:, rank : 2 * rank], new_b[:, rank : 2 * rank])


def test_one_step_is_one_adam_step_of_one_clipped_gradient():
    rig = family_rig(3, train={"max_grad_norm": 0.5})
    agents = rig.agents
    agents.show(torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]))
    grads = torch.randn(agents.gradients.shape, generator=torch.Generator().manual_seed(3))
    agents.gradients.copy_(grads)
    family = torch.nn.Parameter(agents.family.clone())
    # B_1's entries count twice the first weight, B_2's twice the second, all others once.
    factors = torch.ones_like(grads)
    for layer in agents.layer_names:
        _, b = agents.matrices(factors, layer)
        rank = rig.settings.adapter.rank
        b[..., rank : 2 * rank] = torch.tensor([0.0, 1.0, 2.0])[:, None, None]
        b[..., 2 * rank :] = torch.tensor([2.0, 1.0, 0.0])[:, None, None]
    family.grad = (grads * factors).mean(dim=0, keepdim=True)
    norm = torch.nn.utils.clip_grad_norm_([family], 0.5)
    torch.optim.AdamW([family], lr=1e-2, weight_decay=0.0).step()
    norms = agents.step(0.5)
    torch.testing.assert_close(norms, norm.expand(3))
    torch.testing.assert_close(agents.family, family.detach(), rtol=1e-5, atol=1e-7)
    shown = [agents.snapshot(slot) for slot in range(3)]
    assert torch.equal(torch.stack([each.adapter for each in shown]), agents.family * factors)
    assert [policy.step for policy in agents.snapshot_tasks()] == [1, 1, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_in_one_slot_skips_the_step_of_all(value):
    agents = family_rig(3).agents
    before = agents.snapshot_tasks()
    agents.gradients.fill_(0.1)
    agents.gradients[1, 5] = value
    assert not agents.step(1.0).isfinite().any()
    assert agents.skipped_in_row.tolist() == [1, 1, 1]
    for one, other in zip(before, agents.snapshot_tasks(), strict=True):
        assert torch.equal(one.adapter, other.adapter)
        assert torch.equal(one.exp_avg, other.exp_avg)
        assert other.step == 0
    agents.gradients.fill_(0.1)
    agents.step(1.0)
    assert agents.skipped_in_row.tolist() == [0, 0, 0]


def test_in_float16_an_overflow_lowers_its_own_slots_scale():
    agents = family_rig(3, make_tiny_pipe().to(torch.float16)).agents
    scales = agents.loss_scale.values.clone()
    agents.gradients.fill_(1.0)
    agents.gradients[1, 5] = float("inf")
    agents.step(1.0)
    assert (agents.loss_scale.values / scales).tolist() == [1, 0.5, 1]
    assert agents.snapshot(0).step == 0


@pytest.mark.parametrize("rule", ["ddpo", "diffusion_nft", "awm"])
def test_every_update_rule_trains_the_family(rule):
    rig = family_rig(3, train={"update_rule": rule, "kl_coef": 0.1}, sample={"guidance_scale": 1.0})
    before = rig.agents.family.clone()
    stats = train(rig)
    assert stats.grad_norm.shape == (3,)
    assert stats.ratio_error.nan_to_num(0).max() < 1e-5  # members sample and train alike
    assert (rig.agents.family - before).norm() > 0.01


def test_evaluation_leaves_the_family_alone():
    """Slots may hold other policies for a while; the next iteration shows the family again."""
    agents = family_rig(3).agents
    family = agents.family.clone()
    agents.load(1, dataclasses.replace(agents.initial_policy(), step=7))
    assert torch.equal(agents.family, family)
    assert not any(agents.matrices(agents.snapshot(1).adapter, agents.layer_names[0])[1].flatten())
    weights = agents.draw_directions(even(3), seed=0)
    shown = [agents.snapshot(slot).adapter for slot in range(3)]
    for one, policy in zip(shown, members(agents, weights), strict=True):
        assert torch.equal(one, policy.adapter)


@pytest.mark.usefixtures("rounded_as_diffusers")
def test_an_exported_member_draws_bitwise_the_pictures_of_training(tmp_path):
    rig = family_rig(2, adapter={"alpha": 6.0})
    rig.agents.show(torch.tensor([[0.3, 0.7]]))
    save_adapter(rig.agents, rig.agents.snapshot(0), tmp_path)
    batch = rig.batch(1, 3)
    without, images = draw_without_and_with(tmp_path, make_tiny_pipe(), batch.texts, batch.seeds)
    assert torch.equal(images, rig.rollout(batch).images)
    assert (images - without).abs().max() > 1e-3


def test_a_blend_of_two_members_is_the_member_between_them():
    agents = family_rig(3).agents
    weights = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.7 * 0.1 + 0.3 * 0.8, 0.7 * 0.9 + 0.3 * 0.2]])
    first, second, between = (adapter_of(agents, each) for each in members(agents, weights))
    blend = Adapter.blend([(first, 0.7), (second, 0.3)])
    reduced, error = blend.reduced(first.rank)
    assert error < 1e-5
    for layer in agents.layer_names:
        for adapter in (blend, reduced):
            torch.testing.assert_close(
                adapter.update(layer), between.update(layer), rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("num", [2, 3, 6, 17])
def test_with_two_objectives_every_share_of_the_segment_gets_one_draw(num):
    for seed in range(20):
        drawn = stratified_weights(even(num), seed)
        assert (num * drawn[:, 0]).floor().tolist() == list(range(num))


@pytest.mark.parametrize("num_objectives", [2, 3, 4])
def test_drawn_weights_are_uniform_on_the_simplex(num_objectives):
    """Moments of the uniform distribution; far less spread in their mean than independent draws."""
    draws = torch.stack([stratified_weights(even(10, num_objectives), seed) for seed in range(400)])
    assert (draws >= 0).all()
    torch.testing.assert_close(draws.sum(dim=2), torch.ones(400, 10, dtype=torch.float64))
    m = num_objectives
    variance = (m - 1) / m**2 / (m + 1)
    flat = draws.flatten(0, 1)
    np.testing.assert_allclose(flat.mean(dim=0), 1 / m, atol=0.01)
    np.testing.assert_allclose(flat.var(dim=0), variance, rtol=0.1)
    assert (draws.mean(dim=1).var(dim=0) < 0.7 * variance / 10).all()
    assert torch.equal(draws[3], stratified_weights(even(10, num_objectives), 3))


def test_draws_come_in_the_order_of_the_even_weights_beside_them():
    around = even(6, 3)
    drawn = stratified_weights(around, 5)
    shuffled = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(stratified_weights(around[shuffled], 5), drawn[shuffled])


@pytest.mark.parametrize(
    ("evolution", "message"),
    [
        ({"strategy": "prediction_guided"}, "set evolution.strategy=fixed_weights"),
        ({"strategy": "moead"}, "evolution.strategy=moead needs agents that have policies"),
        ({"strategy": "random"}, "set evolution.strategy=fixed_weights"),
        ({"strategy": "fixed_weights", "start": "soup"}, "set evolution.start=even_weights"),
    ],
)
def test_searches_that_move_agents_apart_are_refused(evolution, message):
    with pytest.raises(ConfigError, match=message):
        make_settings(agents={"kind": "conditioned"}, evolution=evolution)
