"""Pictures of a base model that was taken for another kind are flat, or noise."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ddpo.calibration import picture_problem
from ddpo.model.loading import load_pipeline
from tests.support.drawing import draw
from tests.support.pipelines import of_8_bits
from tests.support.rig import make_settings

ANIMALS = ["cat", "dog", "fox", "frog", "lion"]


def bytes_of(images):
    return (255 * of_8_bits(images)).byte()


@pytest.mark.parametrize(
    ("prediction", "words"),
    [("epsilon", None), ("v_prediction", "are flat"), ("sample", "are noise")],
)
def test_the_embedded_model_taken_for_another_kind_draws_no_pictures(prediction, words):
    pretrained = {"prediction_type": prediction}
    pipe = load_pipeline(make_settings(pretrained=pretrained).pretrained)
    images = draw(pipe, ANIMALS, list(range(5)), {}, num_steps=6)
    problem = picture_problem(bytes_of(images), 4)
    assert (problem is None) is (words is None)
    assert words is None or words in problem
    assert words is None or "check pretrained.prediction_type" in problem


def test_flat_pictures_noise_and_shapes_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(6, 3, 64, 64, generator=generator)
    coarse = functional.interpolate(torch.rand(6, 3, 8, 8, generator=generator), scale_factor=8)
    shapes = functional.interpolate(
        torch.rand(6, 3, 3, 3, generator=generator), size=64, mode="bilinear"
    )
    assert "are flat" in picture_problem(bytes_of(torch.full((6, 3, 64, 64), 0.5)), 8)
    assert "are flat" in picture_problem(bytes_of(0.5 + 0.1 * (noise - 0.5)), 8)
    assert "are noise" in picture_problem(bytes_of(noise), 8)
    assert "are noise" in picture_problem(bytes_of(coarse), 8)
    assert picture_problem(bytes_of(shapes), 8) is None
    # Most decide, not all.
    assert picture_problem(bytes_of(torch.cat([shapes, noise[:2]])), 8) is None
