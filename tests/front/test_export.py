"""Exported adapters give the pictures of training in plain diffusers."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from ddpo.agents.adapter import save_adapter
from tests.support.cases import few
from tests.support.pipelines import KINDS, draw_without_and_with, make_tiny_pipe
from tests.support.rig import make_rig


@pytest.mark.usefixtures("rounded_as_diffusers")
@pytest.mark.parametrize(
    ("kind", "alpha"),
    few(product(KINDS, (4.0, 6.0, 8.0)), [("sd1", 4.0), ("sd1", 6.0), ("sd2", 8.0), ("sdxl", 6.0)]),
)
def test_a_plain_pipeline_draws_bitwise_the_pictures_of_training(tmp_path, kind, alpha):
    rig = make_rig(1, make_tiny_pipe(kind), adapter={"alpha": alpha})
    rig.perturb()
    save_adapter(rig.agents, rig.agents.snapshot(0), tmp_path)
    batch = rig.batch(1, 3)
    without, images = draw_without_and_with(
        tmp_path, make_tiny_pipe(kind), batch.texts, batch.seeds
    )
    assert torch.equal(images, rig.rollout(batch).images)
    assert (images - without).abs().max() > 1e-3
