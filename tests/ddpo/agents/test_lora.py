"""The stacked linear layer: every row meets its own agent's update, and so does its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ddpo.agents import lora
from ddpo.agents.lora import Factors, StackedLoRALinear
from ddpo.speed import frozen

AGENTS, WIDTH, OUT, RANK = 3, 6, 5, 2


def make_layer(scale, bias=True, dtype=torch.float64):
    """A layer, and its factors as leaves."""
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(WIDTH, OUT, bias=bias).to(dtype).requires_grad_(False)
    factors = Factors(
        *(
            torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
            for shape in ((AGENTS, WIDTH, RANK), (AGENTS, RANK, OUT))
        )
    )
    return StackedLoRALinear(base, scale, {"layer": factors}, "layer"), factors


def by_hand(layer, factors, x):
    """Agent by agent, differentiated by autograd."""
    parts = [
        layer.base(rows) + layer.scale * (rows @ down @ up)
        for rows, down, up in zip(x.chunk(AGENTS), *factors, strict=True)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("merges", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (6, 4), (3, 2, 4)])
def test_output_and_gradients_are_those_agent_by_agent(shape, bias, scale, merges, monkeypatch):
    monkeypatch.setattr(lora, "_merges", lambda *_: merges)
    layer, factors = make_layer(scale, bias)
    x = torch.randn(*shape, WIDTH, dtype=torch.float64).requires_grad_()
    leaves = (x, *factors)
    out, expected = layer(x), by_hand(layer, factors, x)
    weight = torch.randn_like(out)
    torch.testing.assert_close(out, expected)
    gradients = torch.autograd.grad(out, leaves, weight)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, weight))
    with torch.no_grad():
        assert torch.equal(layer(x), out)  # the ratio before the first update is 1


@pytest.mark.parametrize("rows", [2, 4])
def test_gradients_agree_with_finite_differences(rows):
    layer, factors = make_layer(1.5)

    def run(x, down, up):
        layer.stack["layer"] = Factors(down, up)
        return layer(x)

    x = torch.randn(AGENTS, rows, WIDTH, dtype=torch.float64).requires_grad_()
    assert lora._merges(x, layer.base.weight) == (rows == 4)
    assert torch.autograd.gradcheck(run, (x, *factors))


def test_inputs_that_want_no_gradient_get_none():
    layer, factors = make_layer(1.0)
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    layer(x).sum().backward()
    assert x.grad is None
    assert all(factor.grad.norm() > 0 for factor in factors)


def test_strided_rows_and_gradients_are_read_as_they_are():
    layer, factors = make_layer(1.0)
    x = torch.randn(WIDTH, 4, 6, dtype=torch.float64).permute(2, 1, 0).requires_grad_()
    weight = torch.randn(OUT, 4, 6, dtype=torch.float64).permute(2, 1, 0)
    leaves = (x, *factors)
    gradients = torch.autograd.grad(layer(x), leaves, weight)
    expected = torch.autograd.grad(by_hand(layer, factors, x), leaves, weight)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_keep_its_dtype(dtype):
    layer, factors = make_layer(1.5, dtype=dtype)
    x = torch.randn(3, 4, WIDTH).to(dtype).requires_grad_()
    out = layer(x)
    out.sum().backward()
    assert out.dtype == x.grad.dtype == dtype
    expected = torch.autograd.grad(by_hand(layer, factors, x).sum(), (x, *factors))
    for found, right in zip((x.grad, *(f.grad for f in factors)), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_small_updates_are_not_lost_in_the_weights(dtype):
    layer, (down, up) = make_layer(1.0, bias=False, dtype=dtype)
    layer.base.weight.fill_(1)
    with torch.no_grad():
        down.zero_()[:, 0] = 1e-3
        up.fill_(1)
    x = torch.zeros(AGENTS, 100, WIDTH, dtype=dtype)  # enough rows for merging to be less work
    x[..., 0], x[..., 1] = 1, -1
    torch.testing.assert_close(layer(x), torch.full_like(layer(x), RANK * 1e-3), rtol=0.01, atol=0)


def test_weights_are_not_merged_where_products_are_convolutions(monkeypatch):
    x, weight = torch.zeros(2, 64, WIDTH), torch.zeros(OUT, WIDTH)
    monkeypatch.setattr(frozen, "_MKL_LAGS", True)
    assert lora._merges(x, weight)
    monkeypatch.setattr(frozen, "_FEWEST_MULTIPLICATIONS", x.numel() * OUT)
    assert not lora._merges(x, weight)
