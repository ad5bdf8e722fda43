"""Sample pictures come back from disk as they were drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from run.samples import grid_shape, read_samples, sample_path, write_samples


@pytest.mark.parametrize("num", [1, 2, 3, 5, 8, 9])
def test_small_pictures_return_bit_for_bit(tmp_path, num):
    images = torch.randint(0, 256, (num, 3, 12, 20), dtype=torch.uint8)
    write_samples(tmp_path, "report", "g000a1", images)
    again = read_samples(tmp_path, "report", "g000a1", num)
    for image, original in zip(again, images, strict=True):
        assert np.array_equal(np.asarray(image), original.permute(1, 2, 0).numpy())


def test_large_pictures_are_stored_small_and_look_the_same(tmp_path):
    ramp = torch.linspace(0, 255, 256).byte().expand(2, 3, 256, 256)
    write_samples(tmp_path, "selection", "base", ramp)
    path = sample_path(tmp_path, "selection", "base")
    assert path.stat().st_size < ramp.numel() / 20
    again = np.asarray(read_samples(tmp_path, "selection", "base", 2)[1]).astype(int)
    assert np.abs(again - ramp[1].permute(1, 2, 0).numpy()).mean() < 3


@pytest.mark.parametrize("num", range(1, 40))
def test_a_grid_holds_all_pictures_and_has_no_empty_row(num):
    rows, columns = grid_shape(num)
    assert (rows - 1) * columns < num <= rows * columns
    assert rows <= columns


def test_no_picture_no_file(tmp_path):
    write_samples(tmp_path, "report", "base", torch.empty(0, 3, 0, 0).byte())
    assert not (tmp_path / "samples").exists()
    assert read_samples(tmp_path, "report", "base", 8) == []
