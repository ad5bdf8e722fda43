"""Stacked adapters: together as alone, isolated from each other, faithful snapshots."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from config.settings.errors import UserError
from ddpo.agents.slots import Agents
from ddpo.types import Conditioning
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import make_rig, make_settings


@pytest.mark.usefixtures("rounded_as_diffusers")
def test_a_fresh_adapter_leaves_the_base_model_bitwise_as_it_was():
    pipe = make_tiny_pipe()
    x, t, c = torch.randn(6, 4, 8, 8), torch.tensor(500).expand(6), torch.randn(6, 8, 16)
    with torch.no_grad():
        before = pipe.unet(x, t, c).sample
        rig = make_rig(3, pipe)
        assert torch.equal(rig.agents.predict(x, t, Conditioning(text=c), 3), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("speed", ["off", "layers"])
def test_a_pass_sees_what_the_adapters_have_become(speed, dtype):
    rig = make_rig(2, make_tiny_pipe().to(dtype), speed=speed)
    x, t, c = torch.randn(4, 4, 8, 8), torch.tensor(500).expand(4), torch.randn(4, 8, 16)
    with torch.no_grad():
        before = rig.agents.predict(x, t, Conditioning(text=c), 2)
        rig.perturb()
        after = rig.agents.predict(x, t, Conditioning(text=c), 2)
        rig.agents.load(0, rig.agents.initial_policy())
        again = rig.agents.predict(x, t, Conditioning(text=c), 2)
        rig.agents.gradients[1] = 1
        rig.agents.step(max_grad_norm=1)
        stepped = rig.agents.predict(x, t, Conditioning(text=c), 2)
    assert not torch.equal(after[:2], before[:2])
    assert torch.equal(again[:2], before[:2])
    assert torch.equal(again[2:], after[2:])
    assert not torch.equal(stepped[2:], again[2:])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_agents_together_equal_each_alone(dtype, tolerance):
    """Pictures, the last gradient, and the adapters two optimiser steps later.

    Adam divides by the gradient's size, so tiny entries carry their rounding into full steps:
    float32 adapters may differ ten times as much as their gradients.
    """
    together = make_rig(3, make_tiny_pipe().to(dtype))
    together.perturb()
    start = [together.agents.snapshot(k) for k in range(3)]
    advantages = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    rollout = together.rollout(together.batch(3, 4))
    together.updater.update(together.agents, rollout, advantages, [10, 11, 12])
    for k in range(3):
        alone = make_rig(1, make_tiny_pipe().to(dtype))
        alone.agents.load(0, start[k])
        own = alone.rollout(alone.batch(1, 4, first_agent=k))
        torch.testing.assert_close(
            own.images, rollout.images.unflatten(0, (3, -1))[k], rtol=0, atol=1e-4
        )
        alone.updater.update(alone.agents, own, advantages[k : k + 1], [10 + k])
        moved = alone.agents.snapshot(0).adapter - start[k].adapter
        gap = together.agents.snapshot(k).adapter - alone.agents.snapshot(0).adapter
        gradient = alone.agents.gradients[0]
        assert moved.norm() > 0.01
        assert (together.agents.gradients[k] - gradient).norm() <= tolerance * gradient.norm()
        assert gap.norm() <= 10 * tolerance * moved.norm()


def test_training_one_agent_leaves_the_other_and_the_base_bit_for_bit():
    rig = make_rig(2)
    rig.perturb()
    base = {name: parameter.clone() for name, parameter in rig.model.unet.named_parameters()}
    before = [rig.agents.snapshot(k) for k in range(2)]
    rollout = rig.rollout(rig.batch(2, 4))
    advantages = torch.tensor([[1.0, -1.0, 0.5, -0.5], [0.0, 0.0, 0.0, 0.0]])
    rig.updater.update(rig.agents, rollout, advantages, [1, 2])
    assert not torch.equal(rig.agents.snapshot(0).adapter, before[0].adapter)
    assert torch.equal(rig.agents.snapshot(1).adapter, before[1].adapter)
    after = dict(rig.model.unet.named_parameters())
    assert len(base) > 50
    assert all(torch.equal(after[name], value) for name, value in base.items())


def test_gradients_are_clipped_per_agent():
    rig = make_rig(2)
    rig.agents.gradients[0, :4] = 3.0  # norm 6
    rig.agents.gradients[1, :4] = 0.01  # norm 0.02
    norms = rig.agents.step(max_grad_norm=1.0)
    torch.testing.assert_close(norms, torch.tensor([6.0, 0.02]))
    clipped = rig.agents.gradients.norm(dim=1)
    torch.testing.assert_close(clipped, torch.tensor([1.0, 0.02]))


def test_each_agent_counts_its_own_optimiser_steps():
    """A policy of 40 steps and a fresh one in one stack step as torch's AdamW steps each alone."""
    rig = make_rig(2, train={"weight_decay": 0.1})
    fresh = rig.agents.snapshot(0)
    generator = torch.Generator().manual_seed(3)
    size = fresh.adapter.shape
    old = dataclasses.replace(
        fresh,
        exp_avg=torch.randn(size, generator=generator),
        exp_avg_sq=torch.rand(size, generator=generator) + 0.1,
        step=40,
    )
    rig.agents.load(1, old)
    grad = torch.randn(2, *size, generator=generator)
    rig.agents.gradients.copy_(grad)
    rig.agents.step(max_grad_norm=1e9)
    for slot, policy in enumerate((fresh, old)):
        parameter = torch.nn.Parameter(policy.adapter.clone())
        adam = torch.optim.AdamW([parameter], lr=1e-2, weight_decay=0.1)
        adam.state[parameter] = {
            "step": torch.tensor(float(policy.step)),
            "exp_avg": policy.exp_avg.clone(),
            "exp_avg_sq": policy.exp_avg_sq.clone(),
        }
        parameter.grad = grad[slot]
        adam.step()
        after = rig.agents.snapshot(slot)
        torch.testing.assert_close(after.adapter, parameter.detach(), rtol=1e-6, atol=1e-8)
        assert after.step == policy.step + 1


def test_a_snapshot_restores_the_slot_bit_for_bit_and_never_changes():
    rig = make_rig(2)
    rig.perturb()
    rollout = rig.rollout(rig.batch(2, 4))
    rig.updater.update(rig.agents, rollout, torch.randn(2, 4), [1, 2])
    kept = rig.agents.snapshot(1)
    copy = kept.adapter.clone()
    rig.updater.update(rig.agents, rollout, torch.randn(2, 4), [3, 4])
    assert torch.equal(kept.adapter, copy)
    rig.agents.load(0, kept)
    again = rig.agents.snapshot(0)
    for name in ("adapter", "exp_avg", "exp_avg_sq"):
        assert torch.equal(getattr(again, name), getattr(kept, name))
    assert again.step == kept.step == 2


def test_all_agents_share_one_initial_adapter_of_zero_effect():
    rig = make_rig(3)
    first, *others = (rig.agents.snapshot(k).adapter for k in range(3))
    assert all(torch.equal(first, other) for other in others)
    for name in rig.agents.layer_names:
        a, b = rig.agents.matrices(first, name)
        assert a.abs().max() > 0
        assert b.abs().max() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_agent_whose_gradient_is_not_finite_skips_the_step_and_no_other_notices(value):
    """Agent 1 of 3 meets NaN at the second of three steps; 0 and 2 move as if it had not."""
    rigs = [make_rig(3), make_rig(3)]
    norms = []
    for rig, fault in zip(rigs, (value, 1.0), strict=True):
        for step in range(3):
            if step == 1:
                before = rig.agents.snapshot(1)
            generator = torch.Generator().manual_seed(step)
            rig.agents.gradients.copy_(torch.randn(rig.agents.gradients.shape, generator=generator))
            if step == 1:
                rig.agents.gradients[1, 5] = fault
            norms.append(rig.agents.step(1.0))
            if step == 1 and fault is value:
                assert rig.agents.skipped_in_row.tolist() == [0, 1, 0]
                assert_same(rig.agents.snapshot(1), before)
    assert norms[1].isfinite().tolist() == [True, False, True]
    for slot in (0, 2):
        assert_same(rigs[0].agents.snapshot(slot), rigs[1].agents.snapshot(slot))
    assert rigs[0].agents.snapshot(1).step == 2
    assert rigs[0].agents.skipped_in_row.tolist() == [0, 0, 0]


def assert_same(first, second):
    for name in ("adapter", "exp_avg", "exp_avg_sq"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.step == second.step


@pytest.mark.parametrize("dead", ["to_kk", "conv1", "k"])
def test_a_target_name_that_no_linear_layer_ends_in_is_named(dead):
    with pytest.raises(UserError, match=f"adapter.target_modules=.* none ends in '{dead}'"):
        make_rig(1, adapter={"target_modules": ("to_q", dead)})


def test_mistakes_are_refused():
    rig = make_rig(2)
    with pytest.raises(ValueError, match="another model, rank"):
        rig.agents.load(0, make_rig(1, adapter={"rank": 2}).agents.snapshot(0))
    with pytest.raises(ValueError, match="the same number of rows"):
        rig.agents.predict(
            torch.zeros(3, 4, 8, 8), torch.tensor(1), Conditioning(text=torch.zeros(3, 8, 16)), 2
        )


def test_rank_and_alpha_scale_the_update():
    """Alpha 8 with rank 4 has twice the effect on a layer that alpha 4 has."""
    outputs = []
    for alpha in (4.0, 8.0):
        rig = make_rig(1, adapter={"alpha": alpha})
        rig.perturb()
        rig.rollout(rig.batch(1, 1))  # the layers see the adapters
        layer = rig.agents.layers.by_name[rig.agents.layer_names[0]]
        x = torch.ones(1, 3, layer.base.in_features)
        outputs.append((layer(x) - layer.base(x)).detach())
    torch.testing.assert_close(outputs[1], 2 * outputs[0])


def attention_parameters(blocks, text_width, rank):
    """Adapter entries of SD's attention projections, from the widths of its transformer blocks.

    Self-attention has four (width, width) projections, cross-attention two of them and two
    (width, text_width); a projection (out, in) has rank * (out + in).
    """
    return sum(
        count * rank * (4 * 2 * width + 2 * 2 * width + 2 * (width + text_width))
        for width, count in blocks.items()
    )


PUBLISHED = {  # transformer blocks of each width, by the papers' block diagrams
    "sd-1.5": ({320: 5, 640: 5, 1280: 6}, 768),
    "sd-2.1": ({320: 5, 640: 5, 1280: 6}, 1024),
    "sdxl": ({640: 10, 1280: 60}, 2048),
}


@pytest.mark.parametrize(("name", "rank"), [("sd-1.5", 4), ("sd-2.1", 4), ("sdxl", 16)])
def test_adapters_of_the_published_models(name, rank):
    """Names, shapes and sizes on the meta device, without weights."""
    from diffusers import UNet2DConditionModel

    from ddpo.cost.footprint import known_architecture

    blocks, text_width = PUBLISHED[name]
    settings = make_settings(adapter={"rank": rank, "alpha": 2.0 * rank})
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(known_architecture(name)["unet"])
    base = {n: m for n, m in unet.named_modules() if isinstance(m, torch.nn.Linear)}
    agents = Agents(unet, 6, settings.adapter, settings.train)
    assert len(agents.layer_names) == 8 * sum(blocks.values())
    policy = agents.initial_policy()
    size = 0
    for layer in agents.layer_names:
        assert layer.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))
        a, b = agents.matrices(policy.adapter, layer)
        assert a.shape == (rank, base[layer].in_features)
        assert b.shape == (base[layer].out_features, rank)
        assert a.std() > 0
        assert not b.any()
        size += a.numel() + b.numel()
        assert unet.get_submodule(layer).scale == 2.0
    assert size == attention_parameters(blocks, text_width, rank)
    assert size == {"sd-1.5": 797_184, "sd-2.1": 829_952, "sdxl": 4 * 5_806_080}[name]


@pytest.mark.parametrize(("kind", "num_blocks"), [("sd1", 4), ("sdxl", 8)])
@pytest.mark.parametrize(
    ("targets", "per_block"),
    [(("to_k",), 2), (("attn2.to_q", "attn2.to_v"), 2), (("ff.net.0.proj", "to_out.0"), 3)],
)
def test_targets_are_short_names_or_longer_endings(kind, num_blocks, targets, per_block):
    rig = make_rig(1, make_tiny_pipe(kind), adapter={"target_modules": targets})
    names = rig.agents.layer_names
    assert len(names) == num_blocks * per_block
    found = {target for name in names for target in targets if name.endswith("." + target)}
    assert found == set(targets)
    assert all(name.endswith(tuple("." + target for target in targets)) for name in names)
