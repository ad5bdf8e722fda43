"""DRaFT-K for several agents together, beside DDPO for objectives without a gradient."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from itertools import product

import pytest
import torch
from torch.func import functional_call

from ddpo import devices
from ddpo.ddim import gaussian_log_prob
from ddpo.processes import Processes
from ddpo.reward_gradient import RewardGradientUpdate
from ddpo.rewards.colorfulness import colorfulness
from ddpo.rewards.gradients import RewardGradients
from ddpo.rewards.rms_contrast import rms_contrast
from ddpo.rules.ddpo import Ddpo
from ddpo.sampler import keyed_noise
from ddpo.trainer import make_reward_gradient_update, make_update
from tests.support.cases import few
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import make_rig, random_advantages


def functions(*names):
    """The objectives colourfulness and contrast, of which only the named ones have a gradient."""
    table = {"colorfulness": colorfulness, "rms_contrast": rms_contrast}
    return RewardGradients(
        {
            name: (lambda batch, texts, f=f: f(batch.images, texts)) if name in names else None
            for name, f in table.items()
        }
    )


def make(num_agents=3, dtype=torch.float64, followed=("colorfulness", "rms_contrast"), **changes):
    """A rig with adapters that are not zero, whose updater follows gradients."""
    train = {
        "updates_per_epoch": 1,
        "update_rule": "reward_gradient",
        "gradient_steps": 2,
        **changes.pop("train", {}),
    }
    rig = make_rig(num_agents, make_tiny_pipe().to(dtype), train=train, **changes)
    rig.perturb()
    rig.updater = make_reward_gradient_update(
        rig.sampler,
        functions(*followed),
        rig.settings,
        Processes.alone(),
        is_hybrid=len(followed) < 2,
    )
    return rig


def directions_for(num_agents, samples, followed=(1.0, 1.0)):
    weights = torch.linspace(0.2, 0.9, num_agents)
    per_agent = torch.stack([weights / 20, 1 - weights], dim=1) * torch.tensor(followed)
    return per_agent[:, None].expand(-1, samples, -1)


def updated(rig, samples=4, directions=None, advantages=None, agents=None):
    """Statistics of one update, the adapters after it, and the rollout."""
    num_agents = agents or rig.agents.num_agents
    rollout = rig.rollout(rig.batch(num_agents, samples))
    stats = rig.updater.update(
        rig.agents,
        rollout,
        torch.zeros(num_agents, samples) if advantages is None else advantages,
        list(range(num_agents)),
        directions=directions_for(num_agents, samples) if directions is None else directions,
    )
    adapters = torch.stack([rig.agents.snapshot(k).adapter for k in range(num_agents)])
    return stats, adapters, rollout


@cache
def updated_as_usual():
    """Of three agents, in one pass."""
    return updated(make(3))


def gradient_written_out(rig, rollout, row, direction, steps):
    """Of a picture's value, for its agent's flat adapter: torch and diffusers, all in one graph."""
    pipe = make_tiny_pipe().to(torch.float64)
    agent = row // rollout.prompts.samples_per_agent
    flat = rig.agents.snapshot(agent).adapter.double().requires_grad_()
    scale = rig.settings.adapter.alpha / rig.settings.adapter.rank
    weights = dict(pipe.unet.named_parameters())
    for name in rig.agents.layer_names:
        a, b = rig.agents.matrices(flat, name)
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + scale * b @ a
    scheduler = pipe.scheduler
    scheduler.set_timesteps(len(rollout.timesteps))
    seeds = [rollout.prompts.seeds[row]]
    noise = keyed_noise(seeds, (len(rollout.timesteps) + 1, *rollout.latents.shape[2:])).double()[0]
    text = torch.cat([rig.sampler.negative.text, rollout.prompts.conditioning.text[row][None]])
    latents = noise[None, 0]
    first = len(rollout.timesteps) - steps
    for i, t in enumerate(scheduler.timesteps):
        if i == first:
            latents = latents.detach()
        both = latents.expand(2, -1, -1, -1)
        arguments = (both, t, text.double())
        out = functional_call(pipe.unet, weights, arguments, {"return_dict": False})[0]
        unconditional, conditional = out
        out = unconditional + rig.settings.sample.guidance_scale * (conditional - unconditional)
        latents = scheduler.step(
            out[None], t, latents, eta=1.0, variance_noise=noise[None, i + 1]
        ).prev_sample
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    image = (decoded / 2 + 0.5).clamp(0, 1)
    image = image + ((255 * image).round() / 255 - image).detach()
    value = direction[0] * colorfulness(image, []) + direction[1] * rms_contrast(image, [])
    value.sum().backward()
    return flat.grad


@pytest.mark.parametrize(
    ("steps", "speed"),
    few(product([1, 2, 4], ["off", "layers"]), [(1, "layers"), (2, "off"), (4, "layers")]),
)
def test_it_is_the_gradient_of_autograd_written_out(steps, speed):
    rig = make(2, speed=speed, train={"gradient_steps": steps, "rows_per_pass": 8})
    rollout = rig.rollout(rig.batch(2, 3))
    directions = directions_for(2, 3).double().flatten(0, 1)
    rig.agents.zero_grad()
    rows = torch.arange(6)
    rig.updater.add_reward_gradient(rig.agents, rollout, rows, directions, num_samples=3)
    for agent in range(2):
        expected = sum(
            gradient_written_out(rig, rollout, row, directions[row], steps)
            for row in range(3 * agent, 3 * agent + 3)
        )
        found = -3 * rig.agents.gradients[agent]
        assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_agents_stacked_learn_what_each_learns_alone():
    _, stacked, _ = updated_as_usual()
    rig = make(3)
    for k in range(3):
        alone = make(1)
        alone.agents.load(0, rig.agents.snapshot(k))
        rollout = alone.rollout(alone.batch(1, 4, first_agent=k))
        alone.updater.update(
            alone.agents,
            rollout,
            torch.zeros(1, 4),
            [k],
            directions=directions_for(3, 4)[k : k + 1],
        )
        adapter = alone.agents.snapshot(0).adapter
        assert (adapter - stacked[k]).norm() <= 1e-6 * stacked[k].norm()


@pytest.mark.parametrize(
    ("train", "large"), [({"rows_per_pass": 8}, devices.LARGE_PICTURE), ({}, 1)]
)
def test_the_result_does_not_depend_on_what_goes_through_a_network_together(
    train, large, monkeypatch
):
    expected, adapters, _ = updated_as_usual()
    monkeypatch.setattr(devices, "LARGE_PICTURE", large)
    stats, others, _ = updated(make(3, train=train))
    assert (others - adapters).norm() <= 1e-8 * adapters.norm()
    torch.testing.assert_close(stats.grad_norm, expected.grad_norm, rtol=1e-6, atol=0)
    torch.testing.assert_close(stats.means["loss"], expected.means["loss"], rtol=1e-6, atol=0)


def test_checkpointing_changes_no_bit():
    found = []
    for is_on in (False, True):
        rig = make(2, dtype=torch.float32)
        if is_on:
            rig.model.unet.enable_gradient_checkpointing()
        found.append(updated(rig)[1])
    assert torch.equal(*found)


def test_the_statistics_say_what_was_learnt():
    rig = make(2)
    stats, _, rollout = updated(rig)
    scores = torch.stack(
        [colorfulness(rollout.images, []), rms_contrast(rollout.images, [])], dim=1
    )
    value = (scores.view(2, 4, 2) * directions_for(2, 4)).sum(dim=2).mean(dim=1)
    torch.testing.assert_close(stats.means["loss"], -value.float(), rtol=1e-3, atol=1e-3)
    assert stats.grad_norm.gt(0).all()
    assert stats.skipped.tolist() == [0, 0]
    assert stats.excluded_steps == 2
    assert all(math.isfinite(value) for value in stats.metrics().values())


def test_the_progress_bar_knows_the_number_of_passes():
    for followed in (("colorfulness", "rms_contrast"), ("colorfulness",)):
        rig, passes = make(2, followed=followed, train={"rows_per_pass": 8}), []
        rollout = rig.rollout(rig.batch(2, 4))
        rig.updater.update(
            rig.agents,
            rollout,
            random_advantages(2, 4),
            [0, 1],
            on_pass=lambda passes=passes: passes.append(1),
            directions=directions_for(2, 4),
        )
        assert len(passes) == rig.updater.num_passes(4, 2)


def test_both_gradients_add_up_in_the_same_units():
    """Hybrid: the pathwise gradient of one objective, and DDPO's loss gradient times D T."""
    rig = make(2, followed=("colorfulness",))
    rollout, advantages = rig.rollout(rig.batch(2, 4)), random_advantages(2, 4)
    directions = directions_for(2, 4, (1.0, 0.0))
    before = [rig.agents.snapshot(k) for k in range(2)]

    def gradient_of(updater, **arguments):
        for k in range(2):
            rig.agents.load(k, before[k])
        updater.update(rig.agents, rollout, seeds=[0, 1], **arguments)
        return rig.agents.gradients.clone()

    ppo = make_update(rig.sampler, rig.settings, Processes.alone())
    pathwise = RewardGradientUpdate(
        Ddpo(rig.sampler, rig.settings),
        functions("colorfulness"),
        None,
        rig.settings,
        Processes.alone(),
    )
    loose = dataclasses.replace(rig.settings.train, max_grad_norm=math.inf)
    for updater in (ppo, pathwise, rig.updater):
        updater.settings = loose
    policy_gradient = gradient_of(ppo, advantages=advantages)
    reward_gradient = gradient_of(pathwise, advantages=advantages, directions=directions)
    both = gradient_of(rig.updater, advantages=advantages, directions=directions)
    entries, steps = math.prod(rollout.latents.shape[2:]), len(rig.updater.pairs.steps)
    expected = reward_gradient + entries * steps * policy_gradient
    assert (both - expected).norm() <= 1e-9 * expected.norm()


def test_a_penalty_on_the_distance_from_the_base_model_pulls_back():
    free, adapters, _ = updated(make(2, train={"learning_rate": 1e-2}))
    held = make(2, train={"learning_rate": 1e-2, "kl_coef": 100.0})
    stats, pulled, _ = updated(held)
    assert "kl_to_base" in stats.means
    assert "kl_to_base" not in free.means
    start = torch.stack([make(2).agents.snapshot(k).adapter for k in range(2)])
    cosine = torch.cosine_similarity(
        (adapters - start).flatten(), (pulled - start).flatten(), dim=0
    )
    assert cosine < 0.9


def test_a_family_of_adapters_learns_from_all_pictures():
    kind = {"agents": {"kind": "conditioned"}, "evolution": {"strategy": "fixed_weights"}}
    rig = make(3, **kind)
    before = rig.agents.family.clone()
    stats, _, _ = updated(rig)
    assert stats.grad_norm[0] == stats.grad_norm[1]
    assert (rig.agents.family != before).any()


def test_memory_does_not_grow_with_pictures_or_steps():
    """One step of one pass is in a graph at a time."""
    peaks = []
    for steps, samples in ((1, 4), (4, 4), (4, 16)):
        rig = make(1, train={"gradient_steps": steps, "rows_per_pass": 8})
        rollout = rig.rollout(rig.batch(1, samples))
        kept = {"now": 0, "most": 0}

        def pack(tensor, kept=kept):
            kept["now"] += 1
            kept["most"] = max(kept["most"], kept["now"])
            return Held(tensor, kept)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
            rig.updater.update(
                rig.agents,
                rollout,
                torch.zeros(1, samples),
                [0],
                directions=directions_for(1, samples),
            )
        peaks.append(kept["most"])
    assert max(peaks) <= 1.2 * min(peaks)


class Held:
    """A tensor that a graph keeps, counted while it does."""

    def __init__(self, tensor, kept):
        self.tensor, self.kept = tensor, kept

    def __del__(self):
        self.kept["now"] -= 1


def test_both_estimators_have_the_same_expectation():
    """A linear reward of a Gaussian step: d/dm E[c . x] by path, and by score function."""
    generator = torch.Generator().manual_seed(0)
    mean, sigma, slope = torch.tensor([0.3, -0.2]), torch.tensor(0.7), torch.tensor([1.0, -2.0])
    draws = mean + sigma * torch.randn(10_000, 2, generator=generator)
    rewards = draws @ slope
    leaf = mean.expand(10_000, -1).clone().requires_grad_()
    latents = draws.view(-1, 2, 1, 1)
    log_probs = gaussian_log_prob(latents, leaf.view(-1, 2, 1, 1), sigma)
    entries = 2
    (entries * (rewards - rewards.mean()) * log_probs).sum().backward()
    estimate, error = leaf.grad.mean(dim=0), leaf.grad.std(dim=0) / 100
    assert ((estimate - slope).abs() < 3 * error).all()
    assert (error < 0.1).all()
