"""Upsampling and its convolution as one: the same values and gradients, up to rounding."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.upsampling import Upsample2D

from ddpo.speed.upsampling import FrozenUpsample2D
from tests.support.layers import pair, quickened
from tests.support.measures import kept


def test_upsampling_keeps_no_input():
    plain, constant = upsampling_pair()
    quickened(constant)
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
    quickened(constant.double().to(memory_format=layout))
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
    quickened(constant)
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
    quickened(constant)
    assert type(constant) is Upsample2D
    x = torch.randn(2, 4, 5, 3)
    assert torch.equal(constant(x), plain(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_summed_weights_of_half_precision_are_at_most_twice_as_far_from_float32(dtype):
    plain, constant = upsampling_pair(out_channels=64)
    x = torch.randn(2, 4, 16, 16).to(dtype)
    exact = plain.double()(x.double())
    quickened(constant.to(dtype))
    assert constant.kernel.dtype == dtype
    errors = [(each(x).double() - exact).square().mean() for each in (constant, plain.to(dtype))]
    assert errors[0] < 2**2 * errors[1]


def test_costs_are_counted_of_layers_as_published():
    with torch.device("meta"):
        _, constant = upsampling_pair()
    quickened(constant)
    assert type(constant) is Upsample2D
