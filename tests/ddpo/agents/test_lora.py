"""The stacked linear layer: every row meets its own agent's update, and so does its gradient."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from ddpo.agents.adapter import save_adapter
from ddpo.agents.lora import StackedLoRALinear
from tests.support.cases import few
from tests.support.pipelines import KINDS, draw_without_and_with, make_tiny_pipe
from tests.support.rig import make_rig

AGENTS, WIDTH, OUT, RANK = 3, 6, 5, 2


def make_layer(scale, bias=True, dtype=torch.float64):
    """A layer, and its matrices as leaves."""
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(WIDTH, OUT, bias=bias).to(dtype).requires_grad_(False)
    layer = StackedLoRALinear(base, scale)
    layer.matrices = tuple(
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in ((AGENTS, RANK, WIDTH), (AGENTS, OUT, RANK))
    )
    return layer


def by_hand(layer, x):
    """Agent by agent, with each agent's W + scale B A."""
    parts = [
        nn.functional.linear(rows, layer.base.weight + layer.scale * b @ a, layer.base.bias)
        for rows, a, b in zip(x.chunk(AGENTS), *layer.matrices, strict=True)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (6, 4), (3, 2, 4)])
def test_output_and_gradients_are_those_agent_by_agent(shape, bias, scale):
    layer = make_layer(scale, bias)
    x = torch.randn(*shape, WIDTH, dtype=torch.float64).requires_grad_()
    leaves = (x, *layer.matrices)
    out, expected = layer(x), by_hand(layer, x)
    weight = torch.randn_like(out)
    torch.testing.assert_close(out, expected)
    gradients = torch.autograd.grad(out, leaves, weight)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, weight))


def test_switched_off_it_is_the_base_layer():
    layer = make_layer(1.5)
    x = torch.randn(AGENTS, 4, WIDTH, dtype=torch.float64)
    assert not torch.allclose(layer(x), layer.base(x))
    layer.is_adapted = False
    assert torch.equal(layer(x), layer.base(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_small_updates(dtype):
    layer = make_layer(1.0, bias=False, dtype=dtype)
    layer.base.weight.fill_(1)
    a, b = layer.matrices
    with torch.no_grad():
        a.zero_()[..., 0] = 1e-3
        b.fill_(1)
    x = torch.zeros(AGENTS, 2, WIDTH, dtype=dtype)
    x[..., 0], x[..., 1] = 1, -1
    out = layer(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out, torch.full_like(out, RANK * 1e-3), rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("kind", "alpha"), few(product(KINDS, (4.0, 6.0)), [("sd1", 6.0), ("sd2", 4.0), ("sdxl", 6.0)])
)
def test_without_faster_layers_pictures_are_bitwise_those_of_peft_in_diffusers(
    tmp_path, kind, alpha
):
    adapter = {"alpha": alpha, "target_modules": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2")}
    rig = make_rig(1, make_tiny_pipe(kind), speed="off", adapter=adapter)
    rig.perturb()
    save_adapter(rig.agents, rig.agents.snapshot(0), tmp_path)
    batch = rig.batch(1, 3)
    without, images = draw_without_and_with(
        tmp_path, make_tiny_pipe(kind), batch.texts, batch.seeds
    )
    assert torch.equal(images, rig.rollout(batch).images)
    assert (images - without).abs().max() > 1e-3
