"""Fused layers: the same values and gradients, and less kept, whatever compiles them."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn import functional

from ddpo.speed.convolutions import FrozenResnetBlock2D
from ddpo.speed.fused import FusedFeedForward, FusedGroupNorm, FusedResnetBlock2D, fuse, normalised
from tests.support.cases import few
from tests.support.layers import quickened
from tests.support.measures import kept
from tests.support.pipelines import KINDS, make_tiny_pipe
from tests.support.rig import make_rig

pytestmark = pytest.mark.filterwarnings("default")  # compilers have their own


@pytest.fixture(autouse=True)
def _uncompiled():
    """Tests compare the functions, uncompiled, unless they turn the compiler on."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_a_norm_and_its_gradients_are_those_of_pytorch(mean, silu):
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 24).double().requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    x = (mean + torch.randn(3, 24, 5, 7).double()).to(memory_format=torch.channels_last)
    inputs = x.requires_grad_(), torch.randn(3, 24).double().requires_grad_()
    expected = norm(x + inputs[1][:, :, None, None])
    expected = functional.silu(expected) if silu else expected
    out = normalised(x, norm, inputs[1], silu=silu)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected)
    gradient = torch.randn_like(out)
    for ours, theirs in zip(
        *(torch.autograd.grad(each, inputs, gradient) for each in (out, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_norm_in_half_precision_is_rounded_once():
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 8).requires_grad_(False)
    x = (100 + torch.randn(2, 8, 5, 7)).bfloat16()
    exact = functional.silu(copy.deepcopy(norm).double()(x.double())).float()
    out = normalised(x, norm.bfloat16(), silu=True)
    half_a_unit = torch.finfo(torch.bfloat16).eps / 2
    torch.testing.assert_close(out.float(), exact, rtol=1.01 * half_a_unit, atol=1e-5)


RESIDUAL = {"in_channels": 8, "out_channels": 12, "temb_channels": 16, "groups": 4}


@pytest.mark.parametrize(
    ("make", "kind", "shapes"),
    [
        (lambda: ResnetBlock2D(**RESIDUAL), FusedResnetBlock2D, ((2, 8, 5, 3), (2, 16))),
        (
            lambda: ResnetBlock2D(**RESIDUAL, conv_shortcut_bias=False),
            FusedResnetBlock2D,
            ((2, 8, 5, 3), (2, 16)),
        ),
        (
            lambda: ResnetBlock2D(in_channels=8, temb_channels=None, groups=4),
            FusedResnetBlock2D,
            ((2, 8, 5, 3),),
        ),
        (lambda: FeedForward(8), FusedFeedForward, ((2, 5, 8),)),
        (lambda: nn.GroupNorm(4, 8), FusedGroupNorm, ((2, 8, 5, 3),)),
        (lambda: nn.GroupNorm(4, 8), FusedGroupNorm, ((2, 8, 5),)),
    ],
)
def test_a_layer_and_its_gradient_are_those_of_diffusers(make, kind, shapes):
    torch.manual_seed(0)
    layers = nn.ModuleList([make().double()])
    layers.append(copy.deepcopy(layers[0]))
    quickened(layers)
    fuse(layers[1])
    assert type(layers[1]) is kind
    inputs = [torch.randn(shape).double().requires_grad_() for shape in shapes]
    no_timestep = [None] * (isinstance(layers[0], ResnetBlock2D) and len(shapes) == 1)
    results = []
    for layer in layers:
        out = layer(*inputs, *no_timestep)
        results.append((out, *torch.autograd.grad(out.sin().sum(), inputs)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


EVERY_LINEAR_LAYER = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "time_emb_proj",
    "ff.net.0.proj",
    "ff.net.2",
    "linear_1",
)


def drawn_and_trained(rig, num_agents=2):
    """Pictures, and the gradient of a training pass."""
    rig.perturb()
    batch = rig.batch(num_agents, 3)
    rollout = rig.rollout(batch)
    latents = rollout.latents[:, 0]
    timesteps = rig.sampler.schedule.timesteps[:1].expand(len(latents))
    out = rig.agents.predict(latents, timesteps, batch.conditioning, num_agents)
    rig.agents.zero_grad()
    out.square().sum().backward()
    return rollout.images, rig.agents.gradients.clone()


@pytest.mark.parametrize(
    ("kind", "is_checkpointed"),
    few(product(KINDS, (False, True)), [("sd1", True), ("sd2", False), ("sdxl", True)]),
)
def test_pictures_and_gradients_change_by_rounding_only(kind, is_checkpointed):
    results = []
    for is_fused in (False, True):
        projections = () if kind == "sd1" else ("proj_in", "proj_out")  # there convolutions
        adapter = {"target_modules": (*EVERY_LINEAR_LAYER, *projections)}
        how = "fused" if is_fused else "layers"
        rig = make_rig(2, make_tiny_pipe(kind), speed=how, adapter=adapter)
        if is_fused:
            for part in (rig.model.pipe.unet, rig.model.pipe.vae):
                kinds = set(map(type, part.modules()))
                assert {FusedResnetBlock2D, FusedGroupNorm} < kinds
                assert not {ResnetBlock2D, FrozenResnetBlock2D, nn.GroupNorm} & kinds
        if is_checkpointed:
            rig.model.unet.enable_gradient_checkpointing()
        results.append(drawn_and_trained(rig))
    for plain, changed in zip(*results, strict=True):
        torch.testing.assert_close(changed, plain, rtol=1e-3, atol=1e-4)


def test_a_training_pass_keeps_less():
    sizes = []
    for how in ("layers", "fused"):
        rig = make_rig(2, speed=how)
        rig.perturb()
        batch = rig.batch(2, 3)
        latents = torch.zeros(6, *rig.model.latent_shape)
        timesteps = rig.sampler.schedule.timesteps[:1].expand(6)
        _, size = kept(lambda: rig.agents.predict(latents, timesteps, batch.conditioning, 2))  # noqa: B023
        sizes.append(size)
    assert sizes[1] < 0.85 * sizes[0]


def test_without_a_compiler_layers_are_not_fused_and_a_warning_says_so(caplog):
    torch.compiler.reset()
    with torch.compiler.set_stance("fail_on_recompile"):
        rig = make_rig(1, speed="fused")
    kinds = set(map(type, rig.model.unet.modules()))
    assert FrozenResnetBlock2D in kinds
    assert not {FusedResnetBlock2D, FusedGroupNorm, FusedFeedForward} & kinds
    told = "norms and activations could not be compiled; continuing uncompiled: "
    assert told in caplog.text


@pytest.mark.slow
def test_compiled_they_do_the_same():
    with torch.compiler.set_stance("default"):
        rigs = make_rig(2), make_rig(2, speed="fused")
        assert any(type(module) is FusedGroupNorm for module in rigs[1].model.unet.modules())
        for plain, changed in zip(*map(drawn_and_trained, rigs), strict=True):
            torch.testing.assert_close(changed, plain, rtol=1e-3, atol=1e-4)
