"""Loss scaling: invisible in the result, and separate for each agent."""

from __future__ import annotations

import pytest
import torch

from ddpo.agents.loss_scale import LossScale
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import make_rig

CPU = torch.device("cpu")


def trained(rig):
    rollout = rig.rollout(rig.batch(2, 4))
    values = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    stats = rig.updater.update(rig.agents, rollout, values, [1, 2])
    return stats, torch.stack([rig.agents.snapshot(k).adapter for k in range(2)])


def test_scaling_changes_no_bit_of_a_float32_update():
    plain, scaled = make_rig(2), make_rig(2)
    scaled.agents.loss_scale = LossScale(2, CPU, is_on=True)
    scaled.agents.loss_scale.values[1] = 4.0  # each agent its own
    (plain_stats, expected), (stats, adapters) = trained(plain), trained(scaled)
    assert torch.equal(adapters, expected)
    assert torch.equal(stats.grad_norm, plain_stats.grad_norm)
    assert torch.equal(stats.means["loss"], plain_stats.means["loss"])


def test_a_factor_halves_on_overflow_and_doubles_after_two_hundred_finite_gradients():
    scale = LossScale(2, CPU, is_on=True)
    scale.update(torch.tensor([True, False]))
    assert scale.values.tolist() == [2.0**15, 2.0**16]
    for _ in range(199):
        scale.update(torch.tensor([False, False]))
    assert scale.values.tolist() == [2.0**15, 2.0**17]
    scale.update(torch.tensor([False, False]))
    assert scale.values.tolist() == [2.0**16, 2.0**17]
    scale.reset(1)
    assert scale.values.tolist() == [2.0**16, 2.0**16]


def test_it_is_on_in_float16_only_and_a_float16_model_learns():
    assert not make_rig(1).agents.loss_scale.is_on
    rig = make_rig(2, make_tiny_pipe().to(torch.float16))
    start = torch.stack([rig.agents.snapshot(k).adapter for k in range(2)])
    stats, adapters = trained(rig)
    _, expected = trained(make_rig(2))
    assert rig.agents.loss_scale.is_on
    assert adapters.dtype == torch.float32
    assert stats.means["loss"].isfinite().all()
    # half precision has 11 bits; the direction of the update is float32's
    moved, right = (adapters - start).flatten(), (expected - start).flatten()
    assert torch.cosine_similarity(moved, right, dim=0) > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_precisions_have_the_range_and_need_none(dtype):
    rig = make_rig(1, make_tiny_pipe().to(dtype))
    assert rig.agents.loss_scale.values.tolist() == [1.0]
