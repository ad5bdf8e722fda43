"""The KL divergence from the base model: its value, its effect and its cost."""

from __future__ import annotations

import pytest
import torch

from ddpo.ddim import guide
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import make_rig, random_advantages


@pytest.mark.usefixtures("rounded_as_diffusers")
def test_the_base_model_is_there_under_any_adapters():
    rig, plain = make_rig(2), make_tiny_pipe()
    rig.perturb()
    batch = rig.batch(2, 2)
    x, t = torch.randn(4, 4, 8, 8), torch.full((4,), 7)
    with rig.agents.base_model():
        found = rig.agents.predict(x, t, batch.conditioning, 2)
    expected = plain.unet(x, t, batch.conditioning.text).sample
    assert torch.equal(found, expected)
    assert not torch.allclose(rig.agents.predict(x, t, batch.conditioning, 2), expected)


def test_its_gradient_is_that_of_torchs_own_divergence():
    """Without advantages the loss is the divergence alone: a re-statement, one pair at a time."""
    coefficient = 3.0
    rig = make_rig(
        1,
        make_tiny_pipe().to(torch.float64),
        train={"kl_coef": coefficient, "updates_per_epoch": 1, "max_grad_norm": 1e9},
    )
    rig.perturb()
    rollout = rig.rollout(rig.batch(1, 2))
    before = rig.agents.snapshot(0)
    stats = rig.updater.update(rig.agents, rollout, torch.zeros(1, 2), [0])
    found = rig.agents.gradients.clone()

    rig.agents.load(0, before)
    rig.agents.zero_grad()
    base, scheduler = make_tiny_pipe().to(torch.float64), rig.model.scheduler()
    scheduler.set_timesteps(len(rollout.timesteps))
    negative = rig.sampler.negative.text
    total = torch.zeros((), dtype=torch.float64)
    for i in range(2):
        for j, t in enumerate(rollout.timesteps):
            x, conditioning = rollout.latents[i : i + 1, j], rollout.prompts.conditioning[[i]]
            policy = rig.sampler.guided(rig.agents, x, t[None], conditioning, 1)
            outs = [base.unet(x, t, text).sample for text in (negative, conditioning.text)]
            previous = t - scheduler.config.num_train_timesteps // len(rollout.timesteps)
            sigma = scheduler._get_variance(t, previous) ** 0.5
            means = [
                scheduler.step(out, t, x, eta=1.0, variance_noise=torch.zeros_like(x)).prev_sample
                for out in (policy, guide(*outs, 5.0).detach())
            ]
            normals = [torch.distributions.Normal(mean, sigma) for mean in means]
            total = total + torch.distributions.kl_divergence(*normals).mean() / 8
    (coefficient * total).backward()
    torch.testing.assert_close(found, rig.agents.gradients, rtol=1e-6, atol=1e-12)
    assert stats.means["kl_to_base"].item() == pytest.approx(total.item(), rel=1e-6)
    assert stats.metrics()["update/kl_to_base"] == pytest.approx(total.item(), rel=1e-6)
    assert stats.means["loss"].item() == 0


def test_a_coefficient_of_zero_changes_and_costs_nothing():
    adapters, passes, rows = [], [], []
    for coefficient in (0.0, 1e-30):
        rig = make_rig(1, train={"kl_coef": coefficient})
        rollout = rig.rollout(rig.batch(1, 4))
        calls = []
        rig.agents.unet.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        rig.agents.take_num_rows()
        stats = rig.updater.update(rig.agents, rollout, random_advantages(1, 4), [1])
        adapters.append(rig.agents.snapshot(0).adapter)
        passes.append(len(calls))
        rows.append(rig.agents.take_num_rows())
        assert ("update/kl_to_base" in stats.metrics()) is (coefficient > 0)
    assert torch.equal(*adapters)  # 1e-30 of a divergence is less than rounding
    assert passes[1] == 2 * passes[0]
    assert rows[1] == 2 * rows[0]


def test_a_larger_coefficient_stays_nearer_to_the_base_model():
    distances = []
    for coefficient in (1e-30, 1.0, 100.0):
        rig = make_rig(1, train={"kl_coef": coefficient, "clip_nats": 1e3})
        rollout = rig.rollout(rig.batch(1, 4))
        for _ in range(4):
            stats = rig.updater.update(rig.agents, rollout, random_advantages(1, 4), [1])
        distances.append(stats.means["kl_to_base"].item())
    assert distances[0] > 2 * distances[1] > 4 * distances[2] > 0


def test_checkpointed_passes_are_run_again_with_the_adapters_and_not_as_the_base_model():
    gradients = []
    for is_checkpointed in (False, True):
        rig = make_rig(2, train={"kl_coef": 1.0})
        rig.perturb()
        if is_checkpointed:
            rig.model.unet.enable_gradient_checkpointing()
        rollout = rig.rollout(rig.batch(2, 4))
        rig.updater.update(rig.agents, rollout, torch.ones(2, 4), [1, 2])
        gradients.append(rig.agents.gradients)
    torch.testing.assert_close(gradients[1], gradients[0])
