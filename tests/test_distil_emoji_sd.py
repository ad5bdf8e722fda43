"""The distillation of the embedded model: what is trained, what is saved, what is learnt."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline

from ddpo.assets import ASSETS
from ddpo.ddim import denoise
from ddpo.model.lora_file import LoraFile, merge
from tools.distil_emoji_sd import Distillation, Points


@pytest.fixture(scope="module", name="distillation")
def _distillation():
    """One whose student has already left the teacher."""
    folder = ASSETS / "emoji-sd"
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    distillation = Distillation(pipeline, seed=0)
    with torch.no_grad():
        for up in distillation.student.up.values():
            up.normal_(std=0.05)
    return distillation


def test_the_saved_lora_merges_into_the_weights_that_were_trained(distillation, tmp_path):
    student = distillation.student
    pipe = SimpleNamespace(unet=distillation.unet)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    trained = {name: value.detach() for name, value in student.changed().items()}
    file = student.adapter().save(tmp_path)
    try:
        num_layers, num_without_alpha = merge(pipe, LoraFile.read(file), 1.0)
        merged = pipe.unet.state_dict()
        assert (num_layers, num_without_alpha) == (len(student.weights), 0)
        assert {n for n in before if not torch.equal(before[n], merged[n])} == trained.keys()
        for name, value in trained.items():  # up to float16
            torch.testing.assert_close(merged[name], value, atol=1e-3, rtol=1e-3)
    finally:
        pipe.unet.load_state_dict(before)


@torch.no_grad()
def test_a_student_that_arrives_where_the_teacher_does_has_no_loss(distillation):
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn((2, 4, 8, 8), generator=generator)
    timesteps, tokens = torch.tensor([999, 259]), distillation.table[:2]
    predicted = distillation.predicted(noisy, timesteps, distillation.states(tokens))
    final, _ = denoise(predicted, noisy, distillation.alpha_bar(timesteps))
    assert distillation.loss(Points(noisy, timesteps, tokens, final)) < 1e-4
    assert distillation.loss(Points(noisy, timesteps, tokens, final + 1)) > 1


@torch.no_grad()
def test_recorded_points_are_where_the_student_was_and_where_the_teacher_arrives(distillation):
    points = distillation.record(seed=3, pictures=1)
    assert points.timesteps.tolist() == [999, 759, 499, 259]
    last = points.rows(torch.tensor([3]))
    states = distillation.states(last.tokens)
    final = distillation.finish(last.noisy, torch.tensor([259, 139]), states)
    torch.testing.assert_close(last.final, final)
