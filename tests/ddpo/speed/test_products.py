"""Products with frozen weights: the same values and gradients, by whichever library."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ddpo.speed import products
from ddpo.speed.products import FrozenLinear, linear
from tests.support.layers import quickened


@pytest.mark.parametrize("lags", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (4, 8), (2, 3, 8)])
def test_a_linear_layer_and_its_gradient_are_those_of_pytorch(shape, bias, lags, monkeypatch):
    monkeypatch.setattr(products, "MKL_LAGS", lags)
    monkeypatch.setattr(products, "FEWEST_MULTIPLICATIONS", 0)
    plain = nn.Linear(8, 6, bias=bias).requires_grad_(False)
    constant = nn.Linear(8, 6, bias=bias)
    constant.load_state_dict(plain.state_dict())
    quickened(constant)
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
    monkeypatch.setattr(products, "MKL_LAGS", True)
    monkeypatch.setattr(products, "FEWEST_MULTIPLICATIONS", 0)
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
    assert not products.mkl_lags(tmp_path / "cpuinfo")  # another system
    (tmp_path / "cpuinfo").write_text(cpuinfo, encoding="utf-8")
    assert products.mkl_lags(tmp_path / "cpuinfo") is lags


def test_large_products_are_convolutions_where_mkl_lags(monkeypatch):
    """Only speed tells them apart, so the convolutions are counted."""
    monkeypatch.setattr(products, "MKL_LAGS", True)
    calls = []
    convolve = nn.functional.conv2d
    monkeypatch.setattr(nn.functional, "conv2d", lambda *a: calls.append(1) or convolve(*a))
    for positions, num_calls in ((32, 0), (1024, 1)):
        linear(torch.randn(positions, 64), torch.randn(64, 64))
        assert len(calls) == num_calls
