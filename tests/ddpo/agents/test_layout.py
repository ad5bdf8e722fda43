"""Flat adapters: aligned places for every matrix."""

from __future__ import annotations

import torch
from torch import nn

from ddpo.agents.layout import FlatLayout

TARGETS = {"q": nn.Linear(5, 7), "k": nn.Linear(16, 3), "v": nn.Linear(4, 4)}


def test_places_are_aligned_and_apart():
    layout = FlatLayout(TARGETS, 3)
    flat = torch.zeros(layout.size)
    matrices = [matrix for name in TARGETS for matrix in layout.matrices(flat, name)]
    for number, matrix in enumerate(matrices, start=1):
        assert matrix.storage_offset() % 16 == 0
        matrix.fill_(number)
    counts = [int((flat == number).sum()) for number in range(1, 7)]
    assert counts == [15, 21, 48, 9, 12, 12]


def test_a_split_has_the_matrices_of_every_layer_and_their_gradients():
    layout = FlatLayout(TARGETS, 3)
    block = torch.randn(2, layout.size).requires_grad_()
    for name, pair in zip(TARGETS, layout.split(block), strict=True):
        for one, other in zip(pair, layout.matrices(block, name), strict=True):
            assert torch.equal(one, other)
    sum(matrix.square().sum() for pair in layout.split(block) for matrix in pair).backward()
    for name in TARGETS:
        for gradient, matrix in zip(
            layout.matrices(block.grad, name), layout.matrices(block, name), strict=True
        ):
            assert torch.equal(gradient, 2 * matrix)
