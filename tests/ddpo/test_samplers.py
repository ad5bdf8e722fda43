"""The samplers for few steps against diffusers' own: steps, pictures, and policies made of them."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers.schedulers import (
    scheduling_euler_ancestral_discrete,
    scheduling_lcm,
    scheduling_tcd,
)

from config.settings.errors import UserError
from ddpo.ddim import SAMPLERS, make_schedule, name_of
from ddpo.model.stable_diffusion import FrozenDiffusion
from ddpo.steps import described, trained_steps
from tests.support.pipelines import draw_with_diffusers, make_tiny_pipe, sd_scheduler
from tests.support.rig import make_rig, random_advantages

MODULES = {
    "euler_a": scheduling_euler_ancestral_discrete,
    "lcm": scheduling_lcm,
    "tcd": scheduling_tcd,
}


def scheduler_of(sampler, **changes):
    """A scheduler of diffusers with the noise of Stable Diffusion, in float64."""
    config = {**sd_scheduler(timestep_spacing="trailing").config, **changes}
    made = getattr(diffusers, SAMPLERS[sampler]).from_config(config)
    made.alphas_cumprod = made.alphas_cumprod.double()
    return made


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("sampler", "eta", "num_steps"),
    [
        ("lcm", 1.0, 1),
        ("lcm", 1.0, 4),
        ("lcm", 1.0, 7),
        ("tcd", 1.0, 1),
        ("tcd", 0.3, 4),
        ("tcd", 1.0, 8),
        ("euler_a", 1.0, 1),
        ("euler_a", 1.0, 7),
    ],
)
def test_mean_and_deviation_are_those_of_diffusers(
    monkeypatch, sampler, eta, num_steps, prediction_type
):
    """The noise is handed over: without any, the mean; the difference ones make, the deviation."""
    theirs = scheduler_of(sampler, prediction_type=prediction_type)
    schedule = make_schedule(theirs, num_steps, eta)
    output, x = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64).unbind()
    for i, t in enumerate(theirs.timesteps):
        scale = 1.0
        if sampler == "euler_a":  # whose latents are x_t / sqrt(abar_t)
            scale = schedule.alpha_bar[i] ** 0.5
        ends = []
        for noise in (torch.zeros_like(x), torch.ones_like(x)):
            monkeypatch.setattr(MODULES[sampler], "randn_tensor", lambda *_, n=noise, **__: n)
            theirs._step_index = i
            more = {"eta": eta} if sampler == "tcd" else {}
            theirs.is_scale_input_called = True
            ends.append(theirs.step(output, t, x / scale, **more).prev_sample)
        back = schedule.alpha_bar_prev[i] ** 0.5 if sampler == "euler_a" else 1.0
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if sampler == "euler_a" else {}  # float32 inside
        torch.testing.assert_close(schedule.mean(output, x, i), ends[0] * back, **tolerance)
        moved = (ends[1] - ends[0]) * back
        torch.testing.assert_close(schedule.sigma[i].expand_as(moved), moved, **tolerance)
        steps = torch.full((2,), i)
        assert torch.equal(schedule.mean(output, x, steps), schedule.mean(output, x, i))


@pytest.mark.parametrize(
    ("sampler", "num_steps", "timesteps", "trained"),
    [
        ("ddim", 4, [999, 749, 499, 249], [0, 1, 2, 3]),
        ("euler_a", 4, [999, 749, 499, 249], [0, 1, 2]),
        ("lcm", 4, [999, 759, 499, 259], [0, 1, 2]),  # of 50 distilled: 0, 12, 25, 37 from the end
        ("tcd", 4, [999, 759, 499, 259], [0, 1, 2]),
    ],
)
def test_timesteps_by_hand(sampler, num_steps, timesteps, trained):
    schedule = make_schedule(scheduler_of(sampler), num_steps, 1.0)
    assert schedule.timesteps.tolist() == timesteps
    assert schedule.trainable_steps == trained


@pytest.mark.usefixtures("rounded_as_diffusers")
@pytest.mark.parametrize(
    ("sampler", "eta"), [("lcm", 1.0), ("tcd", 0.3), ("euler_a", 1.0)], ids=["lcm", "tcd", "euler"]
)
def test_pictures_are_those_of_a_plain_pipeline(sampler, eta):
    """Bit for bit, but for Euler, whose latents have another scale in diffusers."""

    def pipe():
        made = make_tiny_pipe()
        made.scheduler = sd_scheduler(timestep_spacing="trailing")
        return made

    rig = make_rig(1, pipe(), sample={"sampler": sampler, "eta": eta, "num_steps": 3})
    batch = rig.batch(1, 2)
    images = rig.rollout(batch).images
    plain = pipe()
    kind = getattr(diffusers, SAMPLERS[sampler])
    expected = draw_with_diffusers(
        plain,
        batch.texts,
        batch.seeds,
        scheduler=kind.from_config(plain.scheduler.config, clip_sample=False),
        num_inference_steps=3,
        eta=eta,
    )
    if sampler == "lcm":
        assert torch.equal(images, expected)
    else:
        torch.testing.assert_close(images, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("sampler", ["lcm", "tcd", "euler_a"])
def test_agents_draw_alone_what_they_draw_together_and_their_ratio_is_one(sampler):
    def pipe():
        made = make_tiny_pipe()
        made.scheduler = sd_scheduler(timestep_spacing="trailing")
        return made

    changes = {"sampler": sampler, "guidance_scale": 1.0, "eta": 0.5 if sampler == "tcd" else 1.0}
    together = make_rig(2, pipe(), sample=changes)
    together.perturb()
    batch = together.batch(2, 2)
    rollout = together.rollout(batch)
    for sample in (0, 1):  # as two processes share them
        part = together.rollout(batch.chunk(sample, sample + 1))
        torch.testing.assert_close(part.latents, rollout.latents[sample::2], rtol=0, atol=1e-4)
    alone = make_rig(1, pipe(), sample=changes)
    alone.agents.load(0, together.agents.snapshot(1))
    own = alone.rollout(alone.batch(1, 2, first_agent=1))
    torch.testing.assert_close(own.latents, rollout.latents[2:], rtol=0, atol=1e-4)
    advantages = random_advantages(2, 2)
    stats = together.updater.update(together.agents, rollout, advantages, [1, 2])
    alone.updater.update(alone.agents, own, advantages[1:], [2])
    assert stats.ratio_error.nan_to_num(0).max() < 1e-5
    assert stats.excluded_steps == 1
    torch.testing.assert_close(
        alone.agents.snapshot(0).adapter, together.agents.snapshot(1).adapter, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
def test_a_model_made_for_a_sampler_is_drawn_with_it_unless_told_otherwise(sampler):
    pipe = make_tiny_pipe()
    pipe.scheduler = scheduler_of(sampler, original_inference_steps=20)
    model = FrozenDiffusion(pipe)
    assert name_of(model.scheduler()) == sampler
    assert model.scheduler().config.original_inference_steps == 20
    assert name_of(model.scheduler("ddim")) == "ddim"
    with pytest.raises(UserError, match=r"distilled at 20 of them.*to 20, for example"):
        make_schedule(model.scheduler(), 21, 1.0)


def test_an_eta_without_effect_and_timesteps_that_are_not_whole_are_refused():
    for sampler in ("lcm", "euler_a"):
        with pytest.raises(UserError, match=r"sample\.eta=0\.5 has no effect on sampler"):
            make_schedule(scheduler_of(sampler), 4, 0.5)
    with pytest.raises(UserError, match="does not fit"):
        make_schedule(scheduler_of("euler_a", timestep_spacing="linspace"), 5, 1.0)


@pytest.mark.parametrize(
    ("spacing", "num_steps", "trained"),
    [
        ("leading", 4, 2),  # the last but one is 8 times as sensitive, and the last ends there
        ("leading", 6, 4),
        ("leading", 20, 18),
        ("leading", 50, 48),
        ("trailing", 4, 3),  # c / sigma 3.4, 2.3, 2.1, 23.8
        ("trailing", 8, 7),
        ("trailing", 20, 19),
    ],
)
def test_the_steps_that_are_trained_follow_from_the_schedule(spacing, num_steps, trained):
    schedule = make_schedule(sd_scheduler(timestep_spacing=spacing), num_steps, 1.0)
    assert trained_steps(schedule, 5.0) == list(range(trained))
    assert trained_steps(schedule, 0.0) == list(range(num_steps))


@pytest.mark.parametrize("sampler", ["lcm", "tcd", "euler_a"])
@pytest.mark.parametrize("num_steps", [2, 4, 8])
def test_of_the_samplers_for_few_steps_all_but_the_last_are_trained(sampler, num_steps):
    schedule = make_schedule(scheduler_of(sampler), num_steps, 1.0)
    assert trained_steps(schedule, 5.0) == list(range(num_steps - 1))
    is_two = num_steps == 2
    notes = described(schedule, [0])
    assert f"drawn by {sampler} in {num_steps} steps, at 999, " in notes[0]
    assert any("warning: with two steps" in note for note in notes) is is_two


def test_one_step_is_refused_and_a_step_that_leaves_none_is_named():
    with pytest.raises(UserError, match=r"num_steps=1 cannot be trained by a policy gradient"):
        trained_steps(make_schedule(scheduler_of("euler_a"), 1, 1.0), 5.0)
    with pytest.raises(UserError, match="timestep_spacing=trailing"):
        trained_steps(make_schedule(sd_scheduler(), 2, 1.0), 5.0)  # at 501 and 1
