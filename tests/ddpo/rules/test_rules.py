"""The update rules: hand arithmetic, zero advantage, agents and passes that do not mix."""

from __future__ import annotations

import doctest
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ddpo.cost.footprint import plan_of
from ddpo.rules import UPDATE_RULES, find_rule, forward_process
from ddpo.rules.ddpo import Ddpo
from ddpo.rules.forward_process import mean_square, negative_aware_loss, optimality
from ddpo.rules.loss import Surrogate
from ddpo.rules.rule import Cost, Rule
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import make_rig

FORWARD = ["diffusion_nft", "awm"]
EVERY = [*FORWARD, "ddpo"]


def make_updated(rule, advantages, num_agents=2, first_agent=0, **train):
    """A rig whose agents have taken one iteration's updates, in float64, and its statistics."""
    pipe = make_tiny_pipe().to(torch.float64)
    settings = {"update_rule": rule, "updates_per_epoch": 2, "rows_per_pass": 64, **train}
    rig = make_rig(num_agents, pipe, train=settings)
    rollout = rig.rollout(rig.batch(num_agents, 4, first_agent))
    seeds = [first_agent + k for k in range(num_agents)]
    return rig, rig.updater.update(rig.agents, rollout, advantages, seeds)


def draw_advantages(num_agents):
    return torch.randn(num_agents, 4, generator=torch.Generator().manual_seed(0))


def test_the_examples_of_the_docstrings_hold():
    result = doctest.testmod(forward_process, extraglobs={"torch": torch})
    assert result.attempted >= 4
    assert result.failed == 0


def test_every_name_of_the_table_is_a_rule():
    for name in UPDATE_RULES:
        assert issubclass(find_rule(name), Rule)


def test_the_gradient_of_diffusion_nft_is_that_of_hand_arithmetic():
    """d/de [r (o + b(e-o))^2 + (1-r) (o - b(e-o))^2] = 2b [(2r-1) o + b (e-o)], per entry."""
    error = torch.tensor([[[[0.7]], [[-0.2]]]], requires_grad=True)
    old = torch.tensor([[[[0.5]], [[0.1]]]])
    negative_aware_loss(error, old, torch.tensor([0.9]), strength=0.5).sum().backward()
    by_hand = [0.8 * 0.5 + 0.5 * 0.2, 0.8 * 0.1 + 0.5 * -0.3]  # times 2b = 1, over 2 entries
    assert error.grad.flatten().tolist() == pytest.approx([g / 2 for g in by_hand])


def test_the_gradient_of_awm_is_that_of_hand_arithmetic():
    """At ratio 1, d/de [-A exp(-e^2/2 + old)] = A e, per entry."""
    rig = make_rig(1, train={"update_rule": "awm"})
    error = torch.tensor([[[[0.6]], [[-0.4]]]], requires_grad=True)
    measured = -0.5 * mean_square(error)
    rule = rig.updater.rule
    rule.compare(measured, measured.detach(), torch.tensor([1.5])).loss.sum().backward()
    assert error.grad.flatten().tolist() == pytest.approx([1.5 * 0.6 / 2, 1.5 * -0.4 / 2])


def test_optimality_is_one_half_without_advantage_and_saturates():
    r = optimality(torch.tensor([-9.0, 0.0, 1.0, 9.0]), max_advantage=5.0)
    assert r.tolist() == pytest.approx([0.0, 0.5, 0.6, 1.0])


@pytest.mark.parametrize("rule", EVERY)
def test_zero_advantage_moves_nothing(rule):
    rig, stats = make_updated(rule, torch.zeros(2, 4))
    assert stats.grad_norm.max() < 1e-12
    assert torch.equal(rig.agents.snapshot(1).adapter, rig.agents.initial_policy().adapter)


@pytest.mark.parametrize("rule", FORWARD)
def test_agents_together_equal_each_alone(rule):
    advantages = draw_advantages(2)
    together, _ = make_updated(rule, advantages, num_agents=2)
    for k in range(2):
        alone, _ = make_updated(rule, advantages[k : k + 1], num_agents=1, first_agent=k)
        expected = alone.agents.snapshot(0).adapter
        difference = together.agents.snapshot(k).adapter - expected
        assert difference.norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("rule", FORWARD)
def test_the_result_does_not_depend_on_how_pairs_are_folded(rule):
    advantages = draw_advantages(2)
    wide, _ = make_updated(rule, advantages)
    narrow, _ = make_updated(rule, advantages, rows_per_pass=10)
    expected = wide.agents.snapshot(1).adapter
    assert (narrow.agents.snapshot(1).adapter - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("rule", FORWARD)
def test_a_good_image_is_denoised_better_afterwards_and_a_bad_one_worse(rule):
    advantages = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    rig, _ = make_updated(rule, advantages, num_agents=1, num_inner_epochs=4)
    before = make_rig(1, make_tiny_pipe().to(torch.float64), train={"update_rule": rule})
    rollout = before.rollout(before.batch(1, 4))  # what the update was made from
    rows, steps = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T

    def errors(of):
        of.updater.rule.begin(rollout)
        with torch.no_grad():
            return mean_square(of.updater.rule.predict(of.agents, rollout, rows, steps)).view(4, 4)

    gain = (errors(before) - errors(rig)).mean(dim=1)
    assert gain[0] + gain[2] > gain[1] + gain[3]


@pytest.mark.parametrize("rule", FORWARD)
def test_a_pair_costs_one_row_for_each_of_the_two_policies(rule):
    rig, stats = make_updated(rule, draw_advantages(2))
    sampled = 2 * 4 * 4 * rig.sampler.rows_per_sample
    updated = 2 * (2 * 4 * 4)  # two passes over 2 agents x 4 samples x 4 steps
    assert rig.agents.take_num_rows() == sampled + updated
    assert stats.ratio_error.max() == 0


def test_velocity_models_are_trained_on_the_noise_they_imply():
    from ddpo.ddim import denoise

    x0, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    alpha_bar = torch.tensor(0.3)
    noisy = forward_process.add_noise(x0, noise, alpha_bar)
    velocity = alpha_bar**0.5 * noise - (1 - alpha_bar) ** 0.5 * x0
    clean, eps = denoise(velocity, noisy, alpha_bar, "v_prediction")
    assert torch.allclose(clean, x0, atol=1e-6)
    assert torch.allclose(eps, noise, atol=1e-6)


class Likelihood(Ddpo):
    """A rule of a user's: REINFORCE without clipping, and a metric of its own."""

    @staticmethod
    def cost(settings):
        return Cost(rows_per_pair=settings.sample.rows_per_sample, is_measured_again=False)

    def compare(self, measured, old, advantages):
        surrogate = Surrogate.of(-advantages * measured, log_ratio=measured - old)
        return replace(surrogate, metrics={**surrogate.metrics, "surprise": -measured.detach()})


def test_a_rule_is_a_class_and_a_line_its_cost_and_its_metrics_come_with_it(monkeypatch):
    monkeypatch.setitem(UPDATE_RULES, "likelihood", f"{__name__}:Likelihood")
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(Likelihood=Likelihood))
    train = {"update_rule": "likelihood", "kl_coef": 0.1, "updates_per_epoch": 1}
    rig = make_rig(2, train=train)
    rollout = rig.rollout(rig.batch(2, 4))
    stats = rig.updater.update(rig.agents, rollout, draw_advantages(2), [1, 2])
    metrics = stats.metrics()
    assert metrics["update/surprise"] == pytest.approx(-rollout.log_probs.mean().item(), rel=1e-3)
    assert metrics["update/kl_to_base"] >= 0
    assert plan_of(rig.settings, num_train_prompts=4).train_rows_per_image == 2 * 4
