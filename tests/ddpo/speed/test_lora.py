"""The fast LoRA layer: the plain one's values and gradients, with other products."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ddpo.agents.layout import FlatLayout
from ddpo.agents.lora import StackedLoRALinear
from ddpo.speed import lora, products
from ddpo.speed.lora import FastLoRALinear, merges, positions_in, rank_of_products
from tests.support.layers import quickened
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import make_rig

AGENTS, WIDTH, OUT, RANK = 3, 6, 5, 2


def layer_pair(scale, bias=True, dtype=torch.float64):
    """A plain layer and its fast copy, with the same matrices as leaves."""
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(WIDTH, OUT, bias=bias).to(dtype).requires_grad_(False)
    matrices = tuple(
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in ((AGENTS, RANK, WIDTH), (AGENTS, OUT, RANK))
    )
    layers = nn.ModuleList(StackedLoRALinear(base, scale) for _ in range(2))
    for layer in layers:
        layer.matrices = matrices
    plain, fast = layers[0], quickened(layers[1])
    assert type(fast) is FastLoRALinear
    return plain, fast, matrices


@pytest.mark.parametrize("is_merged", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (6, 4), (3, 2, 4)])
def test_output_and_gradients_are_those_of_the_plain_layer(
    shape, bias, scale, is_merged, monkeypatch
):
    monkeypatch.setattr(lora, "merges", lambda *_: is_merged)
    plain, fast, matrices = layer_pair(scale, bias)
    x = torch.randn(*shape, WIDTH, dtype=torch.float64).requires_grad_()
    leaves = (x, *matrices)
    out, expected = fast(x), plain(x)
    weight = torch.randn_like(out)
    torch.testing.assert_close(out, expected)
    gradients = torch.autograd.grad(out, leaves, weight)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, weight))
    with torch.no_grad():
        assert torch.equal(fast(x), out)  # the ratio before the first update is 1


@pytest.mark.parametrize("rows", [2, 4])
def test_gradients_agree_with_finite_differences(rows):
    _, fast, matrices = layer_pair(1.5)

    def run(x, a, b):
        fast.matrices = a, b
        return fast(x)

    x = torch.randn(AGENTS, rows, WIDTH, dtype=torch.float64).requires_grad_()
    assert merges(x, fast.base.weight) == (rows == 4)
    assert torch.autograd.gradcheck(run, (x, *matrices))


def test_inputs_that_want_no_gradient_get_none():
    _, fast, matrices = layer_pair(1.0)
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    fast(x).sum().backward()
    assert x.grad is None
    assert all(matrix.grad.norm() > 0 for matrix in matrices)


def test_strided_rows_and_gradients_are_read_as_they_are():
    plain, fast, matrices = layer_pair(1.0)
    x = torch.randn(WIDTH, 4, 6, dtype=torch.float64).permute(2, 1, 0).requires_grad_()
    weight = torch.randn(OUT, 4, 6, dtype=torch.float64).permute(2, 1, 0)
    leaves = (x, *matrices)
    gradients = torch.autograd.grad(fast(x), leaves, weight)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain(x), leaves, weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_keep_its_dtype(dtype):
    plain, fast, matrices = layer_pair(1.5, dtype=dtype)
    x = torch.randn(3, 4, WIDTH).to(dtype).requires_grad_()
    leaves = (x, *matrices)
    out = fast(x)
    found = torch.autograd.grad(out.sum(), leaves)
    assert {each.dtype for each in (out, *found)} == {dtype}
    expected = torch.autograd.grad(plain(x).sum(), leaves)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_small_updates_are_not_lost_in_the_weights(dtype):
    _, fast, (a, b) = layer_pair(1.0, bias=False, dtype=dtype)
    fast.base.weight.fill_(1)
    with torch.no_grad():
        a.zero_()[..., 0] = 1e-3
        b.fill_(1)
    x = torch.zeros(AGENTS, 100, WIDTH, dtype=dtype)  # enough rows for merging to be less work
    x[..., 0], x[..., 1] = 1, -1
    torch.testing.assert_close(fast(x), torch.full_like(fast(x), RANK * 1e-3), rtol=0.01, atol=0)


def test_weights_are_not_merged_where_products_are_convolutions(monkeypatch):
    x, weight = torch.zeros(2, 64, WIDTH), torch.zeros(OUT, WIDTH)
    monkeypatch.setattr(products, "MKL_LAGS", True)
    assert merges(x, weight)
    monkeypatch.setattr(products, "FEWEST_MULTIPLICATIONS", x.numel() * OUT)
    assert not merges(x, weight)


def test_without_gradient_matrices_are_shown_once_a_change():
    rig = make_rig(2)
    conditioning = rig.batch(2, 1).conditioning
    latents, timestep = torch.zeros(2, *rig.model.latent_shape), torch.tensor(500)
    layer = next(iter(rig.agents.layers.by_name.values()))

    def shown(num_agents=2):
        rows = slice(num_agents)
        rig.agents.predict(latents[rows], timestep, conditioning[rows], num_agents)
        return layer.matrices[0]

    with torch.no_grad():
        first = shown()
        assert shown() is first
        rig.agents.load(0, rig.agents.snapshot(0))
        second = shown()
        assert second is not first
        assert shown() is second
        rig.agents.step(max_grad_norm=1.0)
        assert shown() is not second
        assert len(shown(1)) == 1
        with rig.agents.copies(2, 1):
            copied = shown()
            assert shown() is copied
        assert shown().untyped_storage().data_ptr() != copied.untyped_storage().data_ptr()
    assert shown().requires_grad


TARGETS = {"q": nn.Linear(5, 7), "k": nn.Linear(16, 3), "v": nn.Linear(4, 4)}


def entries(layout, block):
    return [m for name in TARGETS for m in layout.matrices(block, name)]


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_higher_rank_adds_zeros(rank):
    narrow, wide = FlatLayout(TARGETS, rank), FlatLayout(TARGETS, 8)
    block = torch.zeros(2, narrow.size)
    for matrix in entries(narrow, block):
        matrix.normal_()
    positions = positions_in(wide, narrow)
    assert len(positions.unique()) == narrow.size
    padded = torch.zeros(2, wide.size).index_copy(1, positions, block)
    for matrix, wider in zip(entries(narrow, block), entries(wide, padded), strict=True):
        rows, columns = matrix.shape[1:]
        assert torch.equal(wider[:, :rows, :columns], matrix)
        assert wider.count_nonzero() == matrix.numel()


@pytest.mark.parametrize(
    ("is_cuda", "dtype", "expected"),
    [
        (True, torch.bfloat16, {4: 8, 8: 8, 9: 16}),
        (True, torch.float16, {1: 8}),
        (True, torch.float32, {4: 4}),
        (False, torch.bfloat16, {4: 4}),
    ],
)
def test_half_precision_on_a_gpu_is_padded(is_cuda, dtype, expected):
    weight = SimpleNamespace(is_cuda=is_cuda, dtype=dtype)
    assert {rank: rank_of_products(rank, weight) for rank in expected} == expected


def test_padded_agents_draw_and_learn_the_same(monkeypatch):
    results = []
    for padded in (4, 8):
        monkeypatch.setattr(lora, "rank_of_products", lambda *_, padded=padded: padded)
        rig = make_rig(3, make_tiny_pipe().to(torch.float64))
        rig.perturb()
        rollout = rig.rollout(rig.batch(3, 4))
        rig.updater.update(rig.agents, rollout, torch.linspace(-1, 1, 4).expand(3, -1), [1, 2, 3])
        a, b = next(iter(rig.agents.layers.by_name.values())).matrices
        assert a.shape[1] == b.shape[2] == padded
        results.append((rollout.images, rig.agents.gradients, rig.agents.snapshot(2).adapter))
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-9, atol=1e-9)
    assert results[0][1].abs().max() > 0
