"""Flat adapters: aligned places, and the same adapter in a layout of a higher rank."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ddpo.agents.layout import FlatLayout, rank_of_products
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import make_rig

TARGETS = {"q": nn.Linear(5, 7), "k": nn.Linear(16, 3), "v": nn.Linear(4, 4)}


def entries(layout, block):
    return [m for name in TARGETS for m in layout.matrices(block, name)]


def test_places_are_aligned_and_apart():
    layout = FlatLayout(TARGETS, 3)
    flat = torch.zeros(layout.size)
    for number, matrix in enumerate(entries(layout, flat), start=1):
        assert matrix.storage_offset() % 16 == 0
        matrix.fill_(number)
    counts = [int((flat == number).sum()) for number in range(1, 7)]
    assert counts == [15, 21, 48, 9, 12, 12]


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_higher_rank_adds_zeros(rank):
    narrow, wide = FlatLayout(TARGETS, rank), FlatLayout(TARGETS, 8)
    block = torch.zeros(2, narrow.size)
    for matrix in entries(narrow, block):
        matrix.normal_()
    positions = narrow.positions_in(wide)
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
    model = SimpleNamespace(is_cuda=is_cuda, dtype=dtype)
    assert {rank: rank_of_products(rank, model) for rank in expected} == expected


def test_padded_agents_draw_and_learn_the_same(monkeypatch):
    results = []
    for padded in (4, 8):
        monkeypatch.setattr("ddpo.agents.slots.rank_of_products", lambda *_, padded=padded: padded)
        rig = make_rig(3, make_tiny_pipe().to(torch.float64))
        rig.perturb()
        rollout = rig.rollout(rig.batch(3, 4))
        rig.updater.update(rig.agents, rollout, torch.linspace(-1, 1, 4).expand(3, -1), [1, 2, 3])
        shown = next(iter(rig.agents._stack.values()))
        assert shown.down.shape[2] == shown.up.shape[1] == padded
        results.append((rollout.images, rig.agents.gradients, rig.agents.snapshot(2).adapter))
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-9, atol=1e-9)
    assert results[0][1].abs().max() > 0
