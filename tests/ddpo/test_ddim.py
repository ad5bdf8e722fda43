"""DDIM against hand arithmetic and against diffusers' own scheduler."""

from __future__ import annotations

import math
import re

import pytest
import torch

from config.settings.errors import UserError
from ddpo.ddim import (
    gaussian_log_prob,
    guide,
    make_schedule,
    output_coefficient,
    step_mean,
    step_std,
)
from tests.support.pipelines import sd_scheduler


def test_step_by_hand():
    # abar_t = 0.25, abar_prev = 0.5, eta = 1: sigma^2 = (0.5 / 0.75) * (1 - 0.5) = 1/3.
    alpha_bar, previous = torch.tensor(0.25), torch.tensor(0.5)
    sigma = step_std(alpha_bar, previous, eta=1.0)
    assert sigma.item() == pytest.approx(math.sqrt(1 / 3))
    # x = 1, eps = 0.2: x0 = (1 - sqrt(0.75) * 0.2) / 0.5 = 1.653590.
    mean = step_mean(torch.tensor([[0.2]]), torch.tensor([[1.0]]), alpha_bar, previous, sigma)
    by_hand = math.sqrt(0.5) * 1.6535898 + math.sqrt(1 - 0.5 - 1 / 3) * 0.2
    assert mean.item() == pytest.approx(by_hand, rel=1e-6)


def test_log_prob_is_the_mean_over_entries_of_the_normal_density():
    action, mean, sigma = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor(0.7)
    expected = torch.distributions.Normal(mean, sigma).log_prob(action).mean(dim=(1, 2, 3))
    torch.testing.assert_close(gaussian_log_prob(action, mean, sigma), expected)


def test_no_gradient_flows_into_the_action():
    action, mean = torch.randn(1, 2, requires_grad=True), torch.randn(1, 2, requires_grad=True)
    gaussian_log_prob(action, mean, torch.tensor(1.0)).sum().backward()
    assert action.grad is None
    torch.testing.assert_close(mean.grad, (action - mean).detach() / 2)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("num_steps", [10, 30])  # 30 does not divide the 1000 timesteps
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_mean_and_deviation_equal_those_of_diffusers(
    prediction_type, set_alpha_to_one, eta, num_steps, spacing, rescaled
):
    scheduler = sd_scheduler(
        prediction_type=prediction_type,
        set_alpha_to_one=set_alpha_to_one,
        timestep_spacing=spacing,
        rescale_betas_zero_snr=rescaled,
    )
    has_no_signal = rescaled and spacing != "leading"  # which never asks for the last timestep
    if has_no_signal and prediction_type == "epsilon":
        with pytest.raises(UserError, match="no signal left at its first step"):
            make_schedule(scheduler, num_steps, eta)
        return
    schedule = make_schedule(scheduler, num_steps, eta)
    assert (schedule.alpha_bar == 0).tolist() == [has_no_signal] + [False] * (num_steps - 1)
    torch.manual_seed(0)
    output, x = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    for i, t in enumerate(schedule.timesteps):

        def step(noise, t=t):
            return scheduler.step(output, t, x, eta=eta, variance_noise=noise).prev_sample

        theirs = step(torch.zeros_like(x))
        mean = step_mean(
            output,
            x,
            schedule.alpha_bar[i],
            schedule.alpha_bar_prev[i],
            schedule.sigma[i],
            prediction_type,
        )
        if has_no_signal and i == 0 and eta == 1:  # diffusers may take the root of -1e-8 here
            direction = -output if prediction_type == "v_prediction" else output
            theirs = schedule.alpha_bar_prev[i] ** 0.5 * direction
            torch.testing.assert_close(mean, theirs, rtol=1e-3, atol=1e-3)
        else:
            torch.testing.assert_close(mean, theirs, rtol=1e-5, atol=1e-5)
            moved = step(torch.ones_like(x)) - theirs
            expected = schedule.sigma[i].expand_as(moved)
            torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


def test_previous_timesteps_by_hand():
    """1000 // 30 = 33 steps back, whatever the spacing; before the start, the final alpha."""
    for spacing, first in (("leading", 33 * 29 + 1), ("trailing", 999), ("linspace", 999)):
        scheduler = sd_scheduler(timestep_spacing=spacing)
        schedule = make_schedule(scheduler, 30, 1.0)
        assert schedule.timesteps[0] == first
        assert schedule.alpha_bar_prev[0] == scheduler.alphas_cumprod[first - 33]
        assert schedule.alpha_bar_prev[-1] == scheduler.alphas_cumprod[0]
    assert make_schedule(scheduler, 30, 1.0).trainable_steps == list(range(29))  # ends at t = 0


@pytest.mark.parametrize(("num_steps", "spacing"), [(1001, "trailing"), (1000, "leading")])
def test_more_steps_than_the_model_has_are_refused(num_steps, spacing):
    with pytest.raises(UserError, match=rf"num_steps={num_steps} does not fit the 1000"):
        make_schedule(sd_scheduler(timestep_spacing=spacing), num_steps, 1.0)


def test_a_whole_step_is_bitwise_that_of_diffusers():
    scheduler = sd_scheduler()
    schedule = make_schedule(scheduler, 10, 1.0)
    output, x, noise = torch.randn(3, 2, 4, 8, 8).unbind()
    for i, t in enumerate(schedule.timesteps):
        theirs = scheduler.step(output, t, x, eta=1.0, variance_noise=noise).prev_sample
        sigma = schedule.sigma[i]
        mean = step_mean(output, x, schedule.alpha_bar[i], schedule.alpha_bar_prev[i], sigma)
        assert torch.equal(mean + sigma * noise, theirs)


def test_steps_without_variance_are_told_apart():
    with_last = make_schedule(sd_scheduler(), 10, 1.0)
    without = make_schedule(sd_scheduler(set_alpha_to_one=True), 10, 1.0)
    assert with_last.trainable_steps == list(range(10))
    assert without.trainable_steps == list(range(9))


def test_unknown_prediction_type_is_refused():
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="use 'epsilon'"):
        step_mean(one, one, one, one, one, "flow")


def test_guidance_by_hand():
    assert guide(torch.tensor(1.0), torch.tensor(1.5), 5.0).item() == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("prediction_type", "by_hand"),
    [("epsilon", 0.816497), ("v_prediction", 0.408248), ("sample", 0.471405)],
)
def test_how_the_mean_depends_on_the_prediction_by_hand(prediction_type, by_hand):
    """abar_t = 1/4, abar_prev = 1/2, sigma^2 = 1/3, so the direction to x_t has sqrt(1/6).

    epsilon: sqrt(1/6) - sqrt(1/2) sqrt(3/4) / sqrt(1/4).
    v_prediction: sqrt(1/6) sqrt(1/4) - sqrt(1/2) sqrt(3/4).
    sample: sqrt(1/2) - sqrt(1/6) sqrt(1/4) / sqrt(3/4).
    """
    values = torch.tensor([[0.25], [0.5], [3**-0.5]]).unbind()
    assert output_coefficient(*values, prediction_type).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_a_schedule_is_distinct_timesteps_of_the_table_or_refused(spacing):
    """diffusers' trailing timesteps are one too many, the last at -1, for 62 numbers of steps."""
    scheduler, refused = sd_scheduler(timestep_spacing=spacing, steps_offset=0), []
    for num_steps in (1, 2, 10, 50, 60, 61, 62, 103, 499, 500, 998, 999, 1000):
        try:
            timesteps = make_schedule(scheduler, num_steps, 1.0).timesteps.tolist()
        except UserError as error:
            refused.append(num_steps)
            advised = int(re.search(r"to (\d+), for example", str(error))[1])
            assert abs(advised - num_steps) == 1
            assert len(make_schedule(scheduler, advised, 1.0).timesteps) == advised
        else:
            assert len(set(timesteps)) == num_steps
            assert timesteps == sorted(timesteps, reverse=True)
            assert 0 <= timesteps[-1] <= timesteps[0] <= 999
    assert refused == ([61, 103, 499, 998] if spacing == "trailing" else [])
