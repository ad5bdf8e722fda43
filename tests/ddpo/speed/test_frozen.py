"""Frozen layers: the same gradients, and no input kept for them."""

from __future__ import annotations

from functools import partial
from unittest import mock

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.utils.checkpoint import checkpoint

from ddpo.agents.adapter import save_adapter
from ddpo.speed import frozen
from ddpo.speed.frozen import (
    FrozenAttention,
    FrozenConv2d,
    FrozenFeedForward,
    FrozenLinear,
    FrozenResnetBlock2D,
    FrozenTransformer2D,
    FrozenUpsample2D,
    freeze,
    linear,
)
from tests.support.measures import kept
from tests.support.pipelines import KINDS, draw_without_and_with, make_tiny_pipe
from tests.support.rig import make_rig

GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "padding": 1},
    {"kernel_size": 1, "groups": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (4, 3), "padding": (0, 1)},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2, "bias": False},
]


@pytest.mark.parametrize(
    "geometry", [{"padding": "same"}, {"padding": 1, "padding_mode": "circular"}]
)
def test_convolutions_that_pad_otherwise_stay_as_they_are(geometry):
    layer = nn.Conv2d(4, 6, kernel_size=3, **geometry)
    freeze(layer)
    assert type(layer) is nn.Conv2d


def test_dropout_is_left_out():
    layers = nn.Sequential(nn.Dropout(0.5))
    freeze(layers)
    x = torch.randn(3)
    assert layers(x) is x
    assert type(layers[0]) is nn.Identity


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_output_and_gradient_are_those_of_pytorch(geometry, layout):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, **geometry).requires_grad_(False).to(memory_format=layout).double()
    constant = nn.Conv2d(4, 6, **geometry).double()
    constant.load_state_dict(plain.state_dict())
    freeze(constant.to(memory_format=layout))
    assert type(constant) is FrozenConv2d
    x = torch.randn(2, 4, 9, 8).double().to(memory_format=layout)
    results = []
    for layer in (plain, constant):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        out.backward(torch.ones_like(out).cumsum(2))
        results.append((out, leaf.grad))
    (plain_out, plain_gradient), (out, gradient) = results
    assert torch.equal(out, plain_out)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-12, atol=1e-12)


def test_it_keeps_no_input():
    x = torch.randn(8, 16, 32, 32, requires_grad=True)
    plain, constant = nn.Conv2d(16, 4, 3).requires_grad_(False), nn.Conv2d(16, 4, 3)
    freeze(constant)
    _, before = kept(lambda: plain(x * 2))
    _, after = kept(lambda: constant(x * 2))
    assert before >= x.nbytes
    assert after == 0


def test_upsampling_keeps_no_input():
    plain, constant = upsampling_pair()
    freeze(constant)
    x = torch.randn(8, 4, 32, 32, requires_grad=True)
    _, before = kept(lambda: plain(x * 2))
    _, after = kept(lambda: constant(x * 2))
    assert before >= x.nbytes
    assert after == 0


def upsampling_pair(**changes):
    """diffusers' upsampling layer and its frozen copy."""
    settings = {"channels": 4, "use_conv": True, "out_channels": 6, **changes}
    plain, constant = pair(Upsample2D, settings)
    return plain.requires_grad_(False), constant


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
def test_upsampling_and_its_gradient_are_those_of_diffusers(bias, layout):
    plain, constant = upsampling_pair(bias=bias)
    plain.double()
    freeze(constant.double().to(memory_format=layout))
    assert type(constant) is FrozenUpsample2D
    assert constant.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 4, 5, 3).double().to(memory_format=layout).requires_grad_()
    weight = torch.randn(2, 6, 10, 6).double()
    out, expected = constant(x), plain(x)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(each, x, weight)[0] for each in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(constant(x), out)


def test_upsampling_to_another_size_is_that_of_diffusers():
    plain, constant = upsampling_pair()
    freeze(constant)
    x = torch.randn(2, 4, 5, 3)
    out = constant(x, output_size=(9, 5))
    assert out.shape == (2, 6, 9, 5)
    assert torch.equal(out, plain(x, output_size=(9, 5)))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_conv": False},
        {"use_conv": False, "use_conv_transpose": True},
        {"interpolate": False},
        {"kernel_size": 1, "padding": 0},
        {"norm_type": "ln_norm", "eps": 1e-5, "elementwise_affine": False},
        {"name": "Conv2d_0"},
    ],
)
def test_upsampling_of_other_kinds_stays_as_it_is(changes):
    plain, constant = upsampling_pair(**changes)
    freeze(constant)
    assert type(constant) is Upsample2D
    x = torch.randn(2, 4, 5, 3)
    assert torch.equal(constant(x), plain(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_summed_weights_of_half_precision_are_at_most_twice_as_far_from_float32(dtype):
    plain, constant = upsampling_pair(out_channels=64)
    x = torch.randn(2, 4, 16, 16).to(dtype)
    exact = plain.double()(x.double())
    freeze(constant.to(dtype))
    assert constant.kernel.dtype == dtype
    errors = [(each(x).double() - exact).square().mean() for each in (constant, plain.to(dtype))]
    assert errors[0] < 2**2 * errors[1]


def test_costs_are_counted_of_layers_as_published():
    with torch.device("meta"):
        _, constant = upsampling_pair()
    freeze(constant)
    assert type(constant) is Upsample2D


@pytest.mark.parametrize("kind", KINDS)
def test_faster_layers_change_pictures_by_rounding_only(tmp_path, kind):
    rig = make_rig(1, make_tiny_pipe(kind))
    rig.perturb()
    for part in (rig.model.pipe.unet, rig.model.pipe.vae):
        assert any(type(module) is FrozenUpsample2D for module in part.modules())
    save_adapter(rig.agents, rig.agents.snapshot(0), tmp_path)
    batch = rig.batch(1, 3)
    without, expected = draw_without_and_with(
        tmp_path, make_tiny_pipe(kind), batch.texts, batch.seeds
    )
    assert (rig.rollout(batch).images - expected).abs().max() < 1e-4
    assert (without - expected).abs().max() > 1e-3


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_feed_forward_network_takes_rows_that_fit_the_cache(rows, monkeypatch):
    plain, constant = pair(FeedForward, {"dim": 16})
    freeze(constant)
    assert type(constant) is FrozenFeedForward
    sizes = []
    constant.net[0].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    row_bytes = 10 * 128 * 4  # positions, hidden channels of gate and value, float32
    monkeypatch.setattr(frozen, "_CACHE_BYTES", 3 * row_bytes + 1)
    x = torch.randn(rows, 10, 16)
    with torch.no_grad():
        torch.testing.assert_close(constant(x), plain(x), rtol=1e-5, atol=1e-6)
    assert sizes == {1: [1], 3: [3], 8: [3, 3, 2]}[rows]
    sizes.clear()
    constant(x.requires_grad_()).sum().backward()
    assert sizes == [rows]


def test_an_adapted_feed_forward_network_takes_all_rows_at_once(monkeypatch):
    """Each agent's rows must meet its own adapter."""
    monkeypatch.setattr(frozen, "_CACHE_BYTES", 1)
    adapter = {"target_modules": ("ff.net.0.proj", "ff.net.2")}
    together, alone = make_rig(2, adapter=adapter), make_rig(1, adapter=adapter)
    together.perturb()
    alone.agents.load(0, together.agents.snapshot(1))
    expected = alone.rollout(alone.batch(1, 3, first_agent=1)).images
    images = together.rollout(together.batch(2, 3)).images
    torch.testing.assert_close(images[3:], expected, rtol=1e-4, atol=1e-5)
    assert (images[3:] - images[:3]).abs().max() > 1e-3


def test_other_feed_forward_networks_stay_as_they_are():
    layer = FeedForward(16, activation_fn="gelu")
    freeze(layer)
    assert type(layer) is FeedForward


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"conv_shortcut_bias": False},
        {"out_channels": 8, "temb_channels": None},
        {"out_channels": 8, "temb_channels": None, "time_embedding_norm": "group"},
    ],
)
def test_a_residual_block_is_that_of_diffusers_to_the_bit(changes, train):
    plain, constant = block_pair(**changes)
    freeze(constant)
    assert type(constant) is FrozenResnetBlock2D
    x = torch.randn(2, 8, 5, 3)
    temb = None if plain.time_emb_proj is None else torch.randn(2, 16)
    x.requires_grad_(train)
    results = []
    for block in (plain.requires_grad_(False), constant):
        block.conv1.__class__ = block.conv2.__class__ = FrozenConv2d
        with torch.set_grad_enabled(train):
            out = block(x * 2, temb)
        results.append([out, *(torch.autograd.grad(out.sum(), x) if train else ())])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {"up": True},
        {"down": True},
        {"non_linearity": "gelu"},
        {"time_embedding_norm": "scale_shift"},
        {"skip_time_act": True},
        {"output_scale_factor": 2.0},
    ],
)
def test_residual_blocks_of_other_kinds_stay_as_they_are(changes):
    _, block = block_pair(**changes)
    freeze(block)
    assert type(block) is ResnetBlock2D


def block_pair(**changes):
    """diffusers' residual block and its copy."""
    settings = {"in_channels": 8, "out_channels": 12, "temb_channels": 16, "groups": 4, **changes}
    return pair(ResnetBlock2D, settings)


def pair(kind, settings):
    """A random layer and its copy."""
    torch.manual_seed(0)
    plain, constant = kind(**settings), kind(**settings)
    constant.load_state_dict(plain.state_dict())
    return plain, constant


@pytest.mark.parametrize("lags", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("linear", [False, True])
def test_transformers_and_their_gradients_are_those_of_diffusers(linear, layout, lags, monkeypatch):
    monkeypatch.setattr(frozen, "_MKL_LAGS", lags)
    monkeypatch.setattr(frozen, "_FEWEST_MULTIPLICATIONS", 0)
    plain, constant = transformer_pair(use_linear_projection=linear)
    for each in (plain, constant):
        each.to(memory_format=layout)
    freeze(constant)
    assert type(constant) is FrozenTransformer2D
    inputs = torch.randn(16, 8, 5, 3).to(memory_format=layout), torch.randn(16, 7, 6)
    for each in inputs:
        each.requires_grad_()
    results = []
    for layer in (plain.requires_grad_(False), constant):
        (out,) = layer(*inputs, return_dict=False)
        results.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
    constant.gradient_checkpointing = True
    constant._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    (out,) = constant(*inputs, return_dict=False)
    results.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
    with torch.inference_mode():
        results.append([constant(*inputs, return_dict=False)[0]])
    for ours in results[1:]:
        for one, other in zip(ours, results[0], strict=False):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*Transformer2DModelOutput:FutureWarning")
def test_what_a_transformer_is_rarely_asked_is_answered_by_diffusers():
    plain, constant = transformer_pair()
    freeze(constant)
    inputs = torch.randn(2, 8, 5, 3), torch.randn(2, 7, 6)
    mask = torch.tensor([[1.0] * 4 + [0.0] * 3] * 2)
    for more in ({}, {"encoder_attention_mask": mask}):
        torch.testing.assert_close(constant(*inputs, **more).sample, plain(*inputs, **more).sample)
    _, other = transformer_pair(norm_type="ada_norm_zero", num_embeds_ada_norm=3)
    freeze(other)
    assert type(other) is Transformer2DModel


def transformer_pair(**changes):
    """diffusers' transformer and its copy."""
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "in_channels": 8,
        "norm_num_groups": 4,
        "cross_attention_dim": 6,
        **changes,
    }
    return pair(Transformer2DModel, settings)


def test_attention_is_that_of_diffusers():
    plain, constant = pair(Attention, {"query_dim": 8, "heads": 2, "dim_head": 4})
    freeze(constant)
    assert type(constant) is FrozenAttention
    x, context = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    mask = torch.zeros(2, 5).bernoulli() * -1e4
    assert torch.equal(constant(x), plain(x))
    assert torch.equal(constant(x, context), plain(x, context))
    assert torch.equal(constant(x, None, mask), plain(x, None, mask))
    assert torch.equal(constant(x, unknown=1), plain(x))  # which diffusers ignores
    image = torch.randn(2, 8, 3, 5)
    torch.testing.assert_close(constant(image), plain(image))
    constant.set_processor(AttnProcessor())  # later
    with mock.patch.object(AttnProcessor, "__call__", return_value=x) as call:
        assert constant(x) is x
    assert call.called


@pytest.mark.parametrize("lags", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (4, 8), (2, 3, 8)])
def test_a_linear_layer_and_its_gradient_are_those_of_pytorch(shape, bias, lags, monkeypatch):
    monkeypatch.setattr(frozen, "_MKL_LAGS", lags)
    monkeypatch.setattr(frozen, "_FEWEST_MULTIPLICATIONS", 0)
    plain = nn.Linear(8, 6, bias=bias).requires_grad_(False)
    constant = nn.Linear(8, 6, bias=bias)
    constant.load_state_dict(plain.state_dict())
    freeze(constant)
    assert type(constant) is FrozenLinear
    x = torch.randn(8, *shape).movedim(0, -1).requires_grad_()  # strided
    weight = torch.randn(6, *shape).movedim(0, -1)
    out, expected = constant(x), plain(x)
    torch.testing.assert_close(out, expected)
    (gradient,) = torch.autograd.grad(out, x, weight)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x, weight)[0])
    with torch.no_grad():
        assert torch.equal(constant(x), out)


@pytest.mark.parametrize(("rows", "dtype"), [(4, torch.float64), (3, torch.float32)])
def test_products_that_no_convolution_takes_are_matrix_products(rows, dtype, monkeypatch):
    monkeypatch.setattr(frozen, "_MKL_LAGS", True)
    monkeypatch.setattr(frozen, "_FEWEST_MULTIPLICATIONS", 0)
    x, weight = torch.randn(rows, 8, 4, dtype=dtype), torch.randn(5, 4, dtype=dtype)
    assert torch.equal(linear(x, weight), nn.functional.linear(x, weight))


CPUINFO = "processor\t: 0\nvendor_id\t: {}\ncpu family\t: {}\nmodel\t\t: 17\n"


@pytest.mark.parametrize(
    ("cpuinfo", "capability", "lags"),
    [
        (CPUINFO.format("AuthenticAMD", 26), "AVX512", True),  # Zen 5
        (CPUINFO.format("AuthenticAMD", 25), "AVX512", False),  # Zen 4
        (CPUINFO.format("AuthenticAMD", 26), "AVX2", False),
        (CPUINFO.format("GenuineIntel", 26), "AVX512", False),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", "DEFAULT", False),
    ],
)
def test_where_mkl_lags_is_read_from_the_processor(
    cpuinfo, capability, lags, monkeypatch, tmp_path
):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert not frozen._mkl_lags(tmp_path / "cpuinfo")  # another system
    (tmp_path / "cpuinfo").write_text(cpuinfo, encoding="utf-8")
    assert frozen._mkl_lags(tmp_path / "cpuinfo") is lags


def test_large_products_are_convolutions_where_mkl_lags(monkeypatch):
    """Only speed tells them apart, so the convolutions are counted."""
    monkeypatch.setattr(frozen, "_MKL_LAGS", True)
    calls = []
    convolve = nn.functional.conv2d
    monkeypatch.setattr(nn.functional, "conv2d", lambda *a: calls.append(1) or convolve(*a))
    for positions, num_calls in ((32, 0), (1024, 1)):
        linear(torch.randn(positions, 64), torch.randn(64, 64))
        assert len(calls) == num_calls


def test_a_training_pass_keeps_a_sixth_less_and_its_gradient_is_the_same():
    gradients, sizes = [], []
    for is_frozen in (False, True):
        rig = make_rig(2)
        rig.perturb()
        if not is_frozen:
            for module in rig.model.unet.modules():
                if type(module) is FrozenConv2d:
                    module.__class__ = nn.Conv2d
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
    assert sizes[1] < 0.85 * sizes[0]
