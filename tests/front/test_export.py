"""Exported adapters give the pictures of training in plain diffusers."""

from __future__ import annotations

import pytest
import torch

from front.export import save_adapter
from tests.conftest import make_rig, make_tiny_pipe


@pytest.mark.parametrize("alpha", [4.0, 8.0, 6.0])
def test_a_plain_pipeline_draws_bitwise_the_pictures_of_training(tmp_path, alpha):
    rig = make_rig(1, adapter={"alpha": alpha})
    rig.perturb()
    save_adapter(rig.agents, rig.agents.snapshot(0), tmp_path)
    batch = rig.batch(1, 3)
    pipe = make_tiny_pipe()
    pipe.set_progress_bar_config(disable=True)

    def draw():
        return pipe(
            list(batch.texts),
            num_inference_steps=4,
            guidance_scale=5.0,
            eta=1.0,
            generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
            output_type="pt",
        ).images

    without = draw()
    pipe.load_lora_weights(tmp_path)
    images = draw()
    assert torch.equal(images, rig.rollout(batch).images)
    assert (images - without).abs().max() > 1e-3
