"""Speed on and off: the same rollouts and updates up to rounding; off leaves nothing of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ddpo import speed
from ddpo.agents.adapter import save_adapter
from ddpo.agents.lora import AdaptedLayers
from ddpo.speed import products
from ddpo.speed.attention import FrozenAttention, FrozenFeedForward, FrozenTransformer2D
from ddpo.speed.convolutions import FrozenConv2d, FrozenResnetBlock2D
from ddpo.speed.layers import LAYERS
from ddpo.speed.lora import FastLoRALinear
from ddpo.speed.products import FrozenLinear
from ddpo.speed.upsampling import FrozenUpsample2D
from ddpo.types import Rollout
from tests.support.cases import few
from tests.support.layers import quickened
from tests.support.measures import kept
from tests.support.pipelines import KINDS, TWO_KINDS, draw_without_and_with, make_tiny_pipe
from tests.support.rig import make_rig, random_advantages

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")


def played(kind, how, dtype, **changes):
    """Rollout, the last gradient of its update, and the adapters after that."""
    rig = make_rig(2, make_tiny_pipe(kind).to(dtype), speed=how, **changes)
    rig.perturb()
    batch, wanted = rig.batch(2, 4), rig.updater.wanted_gradients(4)
    rollout = Rollout.join(batch, list(rig.sampler.chunks(rig.agents, batch, wanted=wanted)))
    rig.updater.update(rig.agents, rollout, random_advantages(2, 4), [1, 2])
    adapters = torch.stack([rig.agents.snapshot(k).adapter for k in range(2)])
    return rollout, rig.agents.gradients, adapters


@pytest.mark.parametrize(
    ("kind", "targets", "train"),
    [
        pytest.param("sd1", ATTENTION, {}, marks=pytest.mark.slow),
        ("sd1", ATTENTION + FEED_FORWARD, {"kl_coef": 0.5}),
        ("sd2", ATTENTION + FEED_FORWARD, {}),
        ("sdxl", ATTENTION, {"single_pass": True, "updates_per_epoch": 1}),
        ("sdxl", ATTENTION + FEED_FORWARD, {"update_rule": "awm"}),
    ],
)
def test_a_rollout_and_an_update_are_the_same_in_float64(kind, targets, train):
    adapter = {"target_modules": targets, "alpha": 6.0}
    plain, fast = (
        played(kind, how, torch.float64, adapter=adapter, train=train) for how in ("off", "layers")
    )
    assert_close(fast, plain, 1e-8)


@pytest.mark.parametrize("kind", few(KINDS, TWO_KINDS))
def test_in_float32_and_with_onednn_they_differ_by_rounding(kind, monkeypatch):
    monkeypatch.setattr(products, "MKL_LAGS", True)
    monkeypatch.setattr(products, "FEWEST_MULTIPLICATIONS", 0)
    assert_close(*(played(kind, how, torch.float32) for how in ("layers", "off")), 1e-3)


def assert_close(found, expected, tolerance):
    """Check two results of `played` for equality, up to a relative tolerance."""
    (rollout, gradients, adapters), (right, right_gradients, right_adapters) = found, expected
    # SDXL's last step has no noise, and so no log-probabilities.
    log_probs, right_log_probs = (each.log_probs.nan_to_num(0) for each in (rollout, right))
    assert (rollout.latents - right.latents).norm() < tolerance * right.latents.norm()
    assert (log_probs - right_log_probs).norm() < tolerance * right_log_probs.norm()
    assert (gradients - right_gradients).norm() < tolerance * right_gradients.norm()
    # An entry moves by the learning rate, 0.01, whatever its gradient.
    assert (adapters - right_adapters).abs().mean() < tolerance * 0.01
    # SDXL's VAE is float32 whatever the UNet is.
    torch.testing.assert_close(rollout.images, right.images, rtol=0, atol=max(tolerance, 1e-5))


@pytest.mark.parametrize("kind", KINDS)
def test_off_leaves_every_layer_as_it_is(kind):
    rig = make_rig(1, make_tiny_pipe(kind), speed="off")
    for network in rig.model.networks:
        origins = {type(module).__module__ for module in network.modules()}
        assert not any(origin.startswith("ddpo.speed") for origin in origins)
    assert type(rig.agents.layers) is AdaptedLayers


@pytest.mark.parametrize("kind", KINDS)
def test_layers_puts_every_kind_in_place(kind):
    rig = make_rig(1, make_tiny_pipe(kind))
    unet, vae = ({type(m) for m in network.modules()} for network in rig.model.networks[:2])
    everywhere = {FrozenConv2d, FrozenLinear, FrozenResnetBlock2D, FrozenUpsample2D}
    assert everywhere <= unet
    assert everywhere <= vae
    assert {FrozenAttention, FrozenTransformer2D, FrozenFeedForward, FastLoRALinear} <= unet
    assert not set(LAYERS) & unet


def test_applied_once_more_nothing_changes():
    rig = make_rig(2)
    kinds, layers = [type(module) for module in rig.model.unet.modules()], rig.agents.layers
    speed.apply("layers", rig.model, rig.agents)
    assert [type(module) for module in rig.model.unet.modules()] == kinds
    assert rig.agents.layers is layers


def test_dropout_is_left_out():
    layers = nn.Sequential(nn.Dropout(0.5))
    quickened(layers)
    x = torch.randn(3)
    assert layers(x) is x
    assert type(layers[0]) is nn.Identity


@pytest.mark.parametrize("kind", few(KINDS, TWO_KINDS))
def test_faster_layers_change_pictures_of_diffusers_by_rounding_only(tmp_path, kind):
    rig = make_rig(1, make_tiny_pipe(kind))
    rig.perturb()
    save_adapter(rig.agents, rig.agents.snapshot(0), tmp_path)
    batch = rig.batch(1, 3)
    without, expected = draw_without_and_with(
        tmp_path, make_tiny_pipe(kind), batch.texts, batch.seeds
    )
    assert (rig.rollout(batch).images - expected).abs().max() < 1e-4
    assert (without - expected).abs().max() > 1e-3


def test_without_inputs_of_convolutions_a_training_pass_keeps_a_sixth_less(monkeypatch):
    gradients, sizes = [], []
    for is_frozen in (True, False):
        if not is_frozen:
            monkeypatch.delitem(LAYERS, nn.Conv2d)
        rig = make_rig(2)
        rig.perturb()
        batch = rig.batch(2, 2)
        latents = torch.randn(
            4, *rig.model.latent_shape, generator=torch.Generator().manual_seed(0)
        )
        arguments = (rig.agents, latents, rig.sampler.schedule.timesteps, batch.conditioning, 2)
        out, size = kept(lambda rig=rig, arguments=arguments: rig.sampler.guided(*arguments))
        out.square().sum().backward()
        gradients.append(rig.agents.gradients.clone())
        sizes.append(size)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert sizes[0] < 0.85 * sizes[1]
