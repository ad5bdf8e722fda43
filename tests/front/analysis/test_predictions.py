"""Blends in the space of predictions: every step mixes what the parts predict."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ddpo.agents.adapter import policy_of
from ddpo.agents.slots import Agents
from ddpo.model.stable_diffusion import FrozenDiffusion
from front import Front
from front.analysis.measure import analyse
from front.analysis.samplers import PredictionSampler
from tests.support.adapters import random_adapter
from tests.support.pipelines import draw_with_diffusers, make_tiny_pipe
from tests.support.rig import make_settings

TEXTS, SEEDS = ["a", "b", "c"], [5, 6, 7]


@pytest.fixture(scope="module", name="draw")
def _draw():
    """Draws blends of two adapters on one tiny UNet, two pictures per pass."""
    sample = {"num_steps": 4, "guidance_scale": 3.0, "rows_per_pass": 16}
    settings = make_settings(adapter={"rank": 4, "alpha": 4.0}, sample=sample)
    model = FrozenDiffusion(make_tiny_pipe())
    agents = Agents(model.unet, 4, settings.adapter, settings.train)
    adapters = [random_adapter(seed) for seed in (1, 2)]
    for slot in range(4):
        agents.load(slot, policy_of(agents, adapters[slot % 2]))

    def draw(*coefficients):
        sampler = PredictionSampler(model, settings.sample, torch.tensor(coefficients))
        num = len(coefficients)
        assert sampler.samples_per_pass(2) == 2
        batch = sampler.prompt_batch(TEXTS * num, SEEDS * num, num)
        chunks = [c.images.unflatten(0, (num, -1)) for c in sampler.chunks(agents, batch)]
        return torch.cat(chunks, dim=1)

    return draw, adapters


def mixing(pipes, coefficients):
    """A stand-in for the first UNet's forward: the weighted sum of what all of them predict."""
    forwards = [pipe.unet.forward for pipe in pipes]

    def forward(*args, **kwargs):
        outs = [each(*args, **kwargs)[0] for each in forwards]
        return (sum(c * out for c, out in zip(coefficients, outs, strict=True)),)

    return forward


def test_pictures_are_those_of_diffusers_with_the_predictions_mixed(draw):
    """Two blends in one pass; guidance is linear, so that the UNets' outputs may be mixed."""
    blends = ((0.3, 0.7), (1.0, 0.0))
    images = draw[0](*blends)
    for coefficients, drawn in zip(blends, images, strict=True):
        pipes = [make_tiny_pipe() for _ in draw[1]]
        for adapter, pipe in zip(draw[1], pipes, strict=True):
            adapter.apply(pipe, "part")
        pipes[0].unet.forward = mixing(pipes, coefficients)
        expected = draw_with_diffusers(pipes[0], TEXTS, SEEDS, guidance_scale=3.0)
        torch.testing.assert_close(drawn, expected, atol=2e-4, rtol=0)


def test_analyse_measures_every_blend_in_predictions_too(finished_run):
    front = Front.load(finished_run)
    two = dataclasses.replace(front, policies=front.policies[:2])
    analysis, _ = analyse(two, 1, with_predictions=True)
    ((blend,),) = (link.blends for link in analysis.links)
    mixed = blend.in_predictions
    assert analysis.num_images == 5 * 16  # two policies, the base model, the blend in two ways
    ends = [policy.report_returns for policy in two.policies]
    assert mixed.returns.shape == ends[0].shape
    assert (mixed.returns != blend.blend.report_returns).any()
    (stored,) = analysis.to_json(two)["links"][0]["blends"]
    assert stored["in_predictions"]["height"] == mixed.height
    assert mixed.height_std_error > 0
    without, _ = analyse(two, 1)
    assert without.links[0].blends[0].in_predictions is None
    assert without.links[0].blends[0].height == pytest.approx(blend.height)
