"""Frozen convolutions and residual blocks: the same gradients, and no input kept for them."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from ddpo.speed.convolutions import FrozenConv2d, FrozenResnetBlock2D
from tests.support.layers import pair, quickened
from tests.support.measures import kept

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
def test_convolutions_that_pad_differently_stay_as_they_are(geometry):
    layer = nn.Conv2d(4, 6, kernel_size=3, **geometry)
    quickened(layer)
    assert type(layer) is nn.Conv2d


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_output_and_gradient_are_those_of_pytorch(geometry, layout):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, **geometry).requires_grad_(False).to(memory_format=layout).double()
    constant = nn.Conv2d(4, 6, **geometry).double()
    constant.load_state_dict(plain.state_dict())
    quickened(constant.to(memory_format=layout))
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
    quickened(constant)
    _, before = kept(lambda: plain(x * 2))
    _, after = kept(lambda: constant(x * 2))
    assert before >= x.nbytes
    assert after == 0


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
    quickened(constant)
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
    quickened(block)
    assert type(block) is ResnetBlock2D


def block_pair(**changes):
    """diffusers' residual block and its copy."""
    settings = {"in_channels": 8, "out_channels": 12, "temb_channels": 16, "groups": 4, **changes}
    return pair(ResnetBlock2D, settings)
