"""DDPO's update: ratio one, independence of folding, agreement with plain DDPO, and it learns."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from config.settings.errors import UserError
from ddpo.ddim import guide
from ddpo.update import MOST_SKIPPED
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import make_rig, random_advantages


def test_the_ratio_is_one_before_the_first_update():
    rig = make_rig(3, train={"rows_per_pass": 18})
    rig.perturb()
    rollout = rig.rollout(rig.batch(3, 4))
    stats = rig.updater.update(rig.agents, rollout, random_advantages(3, 4), [1, 2, 3])
    assert stats.ratio_error.shape == (4,)
    assert stats.ratio_error.max() < 1e-5


@pytest.mark.parametrize("rows_per_pass", [8, 20, 1000])
def test_the_result_does_not_depend_on_how_pairs_are_folded(rows_per_pass):
    expected, adapter = (adapter_after(rows) for rows in (64, rows_per_pass))
    assert (adapter - expected).norm() <= 1e-9 * expected.norm()


@cache
def adapter_after(rows_per_pass):
    """Of the second of two agents after an update in float64."""
    rig = make_rig(2, make_tiny_pipe().to(torch.float64), train={"rows_per_pass": rows_per_pass})
    rollout = rig.rollout(rig.batch(2, 4))
    rig.updater.update(rig.agents, rollout, random_advantages(2, 4), [1, 2])
    return rig.agents.snapshot(1).adapter


def test_one_agent_makes_the_update_of_plain_ddpo():
    """A few-line DDPO with peft adapters and torch's AdamW, one (sample, step) pair at a time."""
    from peft import LoraConfig

    from ddpo.agents.adapter import adapter_of

    clip_nats = 0.02  # small enough that pairs are clipped on the second inner epoch
    rig = make_rig(
        1,
        make_tiny_pipe().to(torch.float64),
        train={"num_inner_epochs": 2, "updates_per_epoch": 1, "clip_nats": clip_nats},
    )
    rig.perturb()
    start = rig.agents.snapshot(0)
    rollout = rig.rollout(rig.batch(1, 4))
    values = random_advantages(1, 4)
    stats = rig.updater.update(rig.agents, rollout, values, [0])
    assert 0 < stats.means["clip_fraction"].item() < 1

    pipe = make_tiny_pipe().to(torch.float64)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets))
    weights = adapter_of(rig.agents, start).state_dict()
    lora = {n: p for n, p in pipe.unet.named_parameters() if p.requires_grad}
    for name, parameter in lora.items():
        parameter.data = weights[name.replace(".default", "")].to(torch.float64)
    adam = torch.optim.AdamW(lora.values(), lr=1e-2, weight_decay=0.0)
    scheduler, steps = rig.model.scheduler(), len(rollout.timesteps)
    scheduler.set_timesteps(steps)
    embeds, negative = rollout.prompts.conditioning.text, rig.sampler.negative.text
    for _ in range(2):
        loss = 0.0
        for i in range(4):
            for j, t in enumerate(rollout.timesteps):
                x, action = rollout.latents[i : i + 1, j], rollout.latents[i : i + 1, j + 1]
                conditional = pipe.unet(x, t, embeds[i : i + 1]).sample
                out = guide(pipe.unet(x, t, negative).sample, conditional, 5.0)
                zero = torch.zeros_like(x)
                mean = scheduler.step(out, t, x, eta=1.0, variance_noise=zero).prev_sample
                previous = t - scheduler.config.num_train_timesteps // steps
                sigma = scheduler._get_variance(t, previous) ** 0.5
                log_prob = torch.distributions.Normal(mean, sigma).log_prob(action).mean()
                ratio = (log_prob - rollout.log_probs[i, j]).exp()
                eps = clip_nats / (4 * 8 * 8)
                a = values[0, i]
                surrogate = torch.max(-a * ratio, -a * ratio.clamp(1 - eps, 1 + eps))
                loss = loss + surrogate / (4 * steps)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora.values(), 1.0)
        adam.step()
    ours = adapter_of(rig.agents, rig.agents.snapshot(0)).state_dict()
    for name, parameter in lora.items():
        torch.testing.assert_close(
            parameter.detach(), ours[name.replace(".default", "")], rtol=1e-4, atol=1e-6
        )


def test_zero_advantage_moves_nothing():
    rig = make_rig(1)
    before = rig.agents.snapshot(0).adapter
    rollout = rig.rollout(rig.batch(1, 4))
    rig.updater.update(rig.agents, rollout, torch.zeros(1, 4), [1])
    assert torch.equal(rig.agents.snapshot(0).adapter, before)


def test_steps_without_variance_are_excluded_and_counted():
    pipe = make_tiny_pipe()
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
    rig = make_rig(1, pipe)
    rollout = rig.rollout(rig.batch(1, 4))
    stats = rig.updater.update(rig.agents, rollout, random_advantages(1, 4), [1])
    assert stats.excluded_steps == 1
    assert stats.ratio_error.isnan().tolist() == [False, False, False, True]
    assert rig.agents.snapshot(0).adapter.isfinite().all()


def test_a_schedule_without_a_step_to_train_is_refused():
    with pytest.raises(UserError, match="none of the 2 denoising steps of this model can be"):
        make_rig(1, sample={"num_steps": 2}, train={"max_sensitivity": 5.0})


def test_the_last_steps_are_left_out_when_asked():
    rig = make_rig(1, train={"max_sensitivity": 5.0})
    rollout = rig.rollout(rig.batch(1, 4))
    stats = rig.updater.update(rig.agents, rollout, random_advantages(1, 4), [1])
    assert stats.excluded_steps == 2
    assert stats.ratio_error.isnan().tolist() == [False, False, True, True]


def test_a_fraction_of_the_steps_costs_a_fraction_of_the_rows():
    rows = {}
    for fraction in (1.0, 0.5):
        rig = make_rig(1, train={"timestep_fraction": fraction})
        rollout = rig.rollout(rig.batch(1, 4))
        rig.agents.take_num_rows()
        rig.updater.update(rig.agents, rollout, random_advantages(1, 4), [1])
        rows[fraction] = rig.agents.take_num_rows()
    assert rows[1.0] == 4 * 4 * 2
    assert rows[0.5] == rows[1.0] / 2


def test_the_progress_bar_knows_the_number_of_passes():
    rig = make_rig(2, train={"num_inner_epochs": 2, "updates_per_epoch": 4, "rows_per_pass": 12})
    rollout = rig.rollout(rig.batch(2, 8))
    passes = []
    advantages = random_advantages(2, 8)
    rig.updater.update(rig.agents, rollout, advantages, [1, 2], lambda: passes.append(1))
    assert len(passes) == rig.updater.num_passes(8, 2) == 2 * 4 * 3  # 8 pairs, 3 in a pass


def test_half_precision_measures_the_policy_that_sampled_again():
    """So that the ratio before the first update is 1 whatever sampling has left."""
    rig = make_rig(1, make_tiny_pipe().to(torch.bfloat16))
    rollout = rig.rollout(rig.batch(1, 4))
    rollout.log_probs.add_(0.5)
    passed = []
    rig.model.unet.register_forward_pre_hook(lambda _, args: passed.append(len(args[0])))
    rig.agents.take_num_rows()
    stats = rig.updater.update(rig.agents, rollout, random_advantages(1, 4), [1])
    assert stats.ratio_error.max() == 0
    assert rig.agents.take_num_rows() == sum(passed) == 2 * (4 * 4 * 2)


def poisoned_update(fault, **train):
    """Two updates of three agents; agent 1's advantages are replaced by `fault`."""
    rig = make_rig(3, train=train)
    rig.perturb()
    rollout = rig.rollout(rig.batch(3, 4))
    values = random_advantages(3, 4)
    values[1] = fault
    return rig, rig.updater.update(rig.agents, rollout, values, [1, 2, 3])


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_costs_its_agent_the_step_and_no_other_anything(fault):
    (sick, stats), (well, expected) = poisoned_update(fault), poisoned_update(1.0)
    assert stats.skipped.tolist() == [0, 2, 0]
    assert expected.skipped.tolist() == [0, 0, 0]
    for slot in (0, 2):
        first, second = sick.agents.snapshot(slot), well.agents.snapshot(slot)
        assert torch.equal(first.adapter, second.adapter)
        assert torch.equal(first.exp_avg_sq, second.exp_avg_sq)
        assert stats.means["loss"][slot] == expected.means["loss"][slot]
    assert sick.agents.snapshot(1).step == 0
    metrics = stats.metrics()
    assert metrics["update/skipped_steps"] == 2
    assert metrics["update/loss"] == pytest.approx(stats.means["loss"][[0, 2]].mean().item())


def test_the_gradient_norm_of_an_agent_is_that_of_the_steps_it_took():
    rig = make_rig(3)
    rollout, values = rig.rollout(rig.batch(3, 4)), random_advantages(3, 4)
    values[1, 0] = torch.nan  # in one of the two updates
    stats = rig.updater.update(rig.agents, rollout, values, [1, 2, 3])
    assert stats.skipped.tolist() == [0, 1, 0]
    assert stats.grad_norm.isfinite().all()
    assert stats.metrics()["update/grad_norm"] == pytest.approx(stats.grad_norm.mean().item())


def test_too_many_skipped_steps_in_a_row_end_the_run():
    with pytest.raises(FloatingPointError, match=r"gradient of agent 1 was not finite 12 times"):
        poisoned_update(torch.nan, num_inner_epochs=MOST_SKIPPED // 2 + 1)
    poisoned_update(torch.nan, num_inner_epochs=MOST_SKIPPED // 2)
