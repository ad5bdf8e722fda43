"""Gradients taken while sampling: the same update as with two passes."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

import pytest
import torch

from ddpo.agents.loss_scale import LossScale
from ddpo.ddim import gaussian_log_prob, step_mean
from ddpo.processes import Processes
from ddpo.trainer import Trainer
from ddpo.types import Rollout
from run.command_line import read_settings
from tests.support.cases import few
from tests.support.measures import count_rows
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import make_rig
from tests.support.waits import counted_waits
from tests.support.worlds import small_world


def make(num_agents=2, dtype=torch.float64, train=None, **changes):
    """A rig for one optimiser step in a single pass, with adapters that are not zero."""
    train = {"updates_per_epoch": 1, "single_pass": True, **(train or {})}
    rig = make_rig(num_agents, make_tiny_pipe().to(dtype), train=train, **changes)
    rig.perturb()
    return rig


def rollout_of(rig, samples=4):
    batch = rig.batch(rig.agents.num_agents, samples)
    wanted = rig.updater.wanted_gradients(samples)
    chunks = rig.sampler.chunks(rig.agents, batch, wanted=wanted)
    return Rollout.join(batch, list(chunks))


def updated(rig, samples=4):
    """Statistics of one update, and the adapters after it."""
    num_agents = rig.agents.num_agents
    values = torch.randn(num_agents, samples, generator=torch.Generator().manual_seed(0))
    rollout = rollout_of(rig, samples)
    stats = rig.updater.update(rig.agents, rollout, values, list(range(num_agents)))
    adapters = torch.stack([rig.agents.snapshot(k).adapter for k in range(num_agents)])
    return stats, adapters


@cache
def updated_as_usual():
    return updated(make())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sample": {"guidance_scale": 1.0}},
        {"train": {"max_sensitivity": 5.0}},
        {"agents": {"kind": "conditioned"}, "evolution": {"strategy": "fixed_weights"}},
    ],
)
def test_it_makes_the_update_of_two_passes(changes):
    train = changes.get("train", {})
    stats, adapters = updated(make(**changes))
    expected, wanted = updated(make(**{**changes, "train": {**train, "single_pass": False}}))
    assert (adapters - wanted).norm() <= 1e-9 * wanted.norm()
    torch.testing.assert_close(stats.grad_norm, expected.grad_norm, rtol=1e-5, atol=0)
    torch.testing.assert_close(stats.means["loss"], expected.means["loss"], rtol=1e-5, atol=0)
    assert torch.equal(stats.ratio_error.isnan(), expected.ratio_error.isnan())
    assert stats.excluded_steps == expected.excluded_steps
    assert torch.equal(stats.skipped, expected.skipped)


def test_a_sample_has_the_gradient_of_its_own_log_probability():
    rig = make(2)
    rollout = rollout_of(rig, 3)
    assert rollout.gradients.shape == (6, len(rig.agents.snapshot(0).adapter))
    row, agent = 4, 1  # the second sample of the second agent
    rig.agents.zero_grad()
    total = 0
    for step, t in enumerate(rollout.timesteps):
        latents = rollout.latents[:, step]
        conditioning = rollout.prompts.conditioning
        out = rig.sampler.guided(rig.agents, latents, t.expand(6), conditioning, 2)
        arguments = (
            rollout.schedule.alpha_bar[step],
            rollout.schedule.alpha_bar_prev[step],
            rollout.schedule.sigma[step],
        )
        mean = step_mean(out, latents, *arguments, rollout.schedule.prediction_type)
        total = total + gaussian_log_prob(rollout.latents[:, step + 1], mean, arguments[2])[row]
    total.backward()
    expected = rig.agents.gradients[agent] / (3 * len(rollout.timesteps))  # of the mean over pairs
    assert (rollout.gradients[row] - expected).norm() <= 1e-9 * expected.norm()


def test_pictures_and_log_probabilities_are_those_of_sampling_without_gradient():
    rig = make(2)
    batch = rig.batch(2, 4)
    plain, single = rig.rollout(batch), rollout_of(rig)
    assert plain.gradients is None
    for name in ("latents", "log_probs", "images"):
        torch.testing.assert_close(getattr(single, name), getattr(plain, name))
        assert not getattr(single, name).requires_grad


@pytest.mark.parametrize("offload", few([False, True], [True]))
def test_the_program_draws_in_passes_of_training_and_learns_the_same(tmp_path, offload):
    words = small_world(tmp_path)
    adapters, rows = [], []
    for single_pass in (False, True):
        changes = {
            "sample.rows_per_pass": 8,
            "sample.offload_rollouts": offload,
            "train.updates_per_epoch": 1,
            "train.rows_per_pass": 4,
            "train.single_pass": single_pass,
            "sample.guidance_scale": 2,
        }
        settings = read_settings(
            [*words, *(f"--config.{name}={value}" for name, value in changes.items())]
        )
        trainer = Trainer(settings, Processes.alone(), lambda *_: lambda: None)
        passes = count_rows(trainer)
        trainer.load([trainer.agents.initial_policy()] * 2, torch.eye(2))
        trainer.scales = torch.tensor([0.01, 1.0])
        batch = trainer.draw(0, 0)
        trainer.update(batch, trainer.advantages(batch))
        assert trainer.take_unet_rows() == sum(passes)
        adapters.append(torch.stack([policy.adapter for policy in trainer.policies()]))
        rows.append(passes)
        trainer.close()
    assert max(rows[0]) == 8
    assert max(rows[1]) == 4
    assert sum(rows[0]) == 1.5 * sum(rows[1])  # two of four steps are trained
    learnt = adapters[0] - trainer.agents.initial_policy().adapter
    assert (adapters[1] - adapters[0]).norm() < 1e-3 * learnt.norm()


@pytest.mark.parametrize("rows_per_pass", [8, 20, 1000])
def test_the_result_does_not_depend_on_the_rows_of_a_pass(rows_per_pass):
    _, expected = updated_as_usual()  # in passes of 64 rows
    _, adapters = updated(make(sample={"rows_per_pass": rows_per_pass}))
    assert (adapters - expected).norm() <= 1e-9 * expected.norm()


def test_agents_together_learn_what_each_learns_alone():
    _, together = updated(make(3))
    rig = make(3)
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    policy = rig.agents.snapshot(2)
    alone = make(1)
    alone.agents.load(0, policy)
    batch = alone.batch(1, 4, first_agent=2)
    wanted = alone.updater.wanted_gradients(4)
    rollout = Rollout.join(batch, list(alone.sampler.chunks(alone.agents, batch, wanted=wanted)))
    alone.updater.update(alone.agents, rollout, values[2:], [2])
    adapter = alone.agents.snapshot(0).adapter
    assert (adapter - together[2]).norm() <= 1e-9 * adapter.norm()


def test_the_steps_left_out_have_no_gradient_and_its_rows_are_counted():
    rig = make(1, train={"max_sensitivity": 5.0})
    assert list(rig.updater.wanted_gradients(4)) == [0, 1]
    stats = rig.updater.update(rig.agents, rollout_of(rig), torch.randn(1, 4), [0])
    assert stats.ratio_error.isnan().tolist() == [False, False, True, True]
    assert rig.agents.take_num_rows() == 4 * 4 * 2  # samples, steps, guidance


def test_gradients_may_wait_on_the_host_and_checkpointing_changes_no_bit():
    _, expected = updated_as_usual()
    rig = make()
    rig.model.unet.enable_gradient_checkpointing()
    rig.model.unet.train()
    _, adapters = updated(rig)
    assert torch.equal(adapters, expected)
    host = dataclasses.replace(rollout_of(make()), gradients=torch.zeros(8, 5)).offloaded()
    assert host.gradients.shape == (8, 5)


def test_loss_scaling_changes_no_bit_and_a_float16_model_learns():
    _, expected = updated(make(dtype=torch.float32))
    rig = make(dtype=torch.float32)
    rig.agents.loss_scale = LossScale(2, torch.device("cpu"), is_on=True)
    rig.agents.loss_scale.values[1] = 4.0
    _, adapters = updated(rig)
    assert torch.equal(adapters, expected)
    half = make(dtype=torch.float16)
    start = torch.stack([half.agents.snapshot(k).adapter for k in range(2)])
    _, moved = updated(half)
    cosine = torch.cosine_similarity((moved - start).flatten(), (expected - start).flatten(), dim=0)
    assert cosine > 0.9


def test_an_agent_whose_gradient_is_not_finite_skips_alone():
    rig = make(2)
    before = rig.agents.snapshot(0)
    rollout = rollout_of(rig)
    rollout.gradients[1, 3] = math.inf
    values = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    stats = rig.updater.update(rig.agents, rollout, values, [0, 1])
    assert stats.skipped.tolist() == [1, 0]
    assert stats.grad_norm.isnan().tolist() == [True, False]
    assert torch.equal(rig.agents.snapshot(0).adapter, before.adapter)
    _, expected = updated_as_usual()
    assert torch.equal(rig.agents.snapshot(1).adapter, expected[1])


def test_nothing_waits_for_the_device_between_the_steps():
    rig = make(2, dtype=torch.float32)
    batch, wanted = rig.batch(2, 3), rig.updater.wanted_gradients(3)
    with counted_waits() as counts:
        list(rig.sampler.chunks(rig.agents, batch, wanted=wanted))
    assert not counts


def test_passes_outside_use_the_agents_own_adapters_again():
    rig = make(2)
    with rig.agents.copies(2, 3) as copies:
        assert len(copies) == 6
    with pytest.raises(ValueError, match="6 rows for 6 of 2 agents"):
        rig.agents.predict(
            torch.zeros(6, *rig.model.latent_shape),
            rig.sampler.schedule.timesteps[:1].repeat(6),
            rig.sampler.negative[[0] * 6],
            6,
        )
