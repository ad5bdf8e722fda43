"""Live pictures of a run equal the pictures that the run was judged by."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import torch

from ddpo.model.stable_diffusion import FrozenDiffusion
from front import Front
from front.pictures.painter import Painter
from run.samples import read_samples
from tests.support.pipelines import make_tiny_pipe


@pytest.fixture(scope="module", name="sdxl_run")
def _sdxl_run(make_run, tmp_path_factory):
    model = tmp_path_factory.mktemp("sdxl") / "model"
    make_tiny_pipe("sdxl").save_pretrained(model)
    # At the other run's learning rate some policies here amplify rounding a thousandfold.
    changes = (
        "sample.guidance_scale=3.0",
        "evolution.evolutionary_generations=1",
        "train.learning_rate=0.1",
    )
    return make_run("sdxl", f"pretrained.model={model}", *changes)


@pytest.mark.parametrize(
    "which", ["finished_run", pytest.param("sdxl_run", marks=pytest.mark.slow)]
)
def test_every_policy_and_the_base_model_draw_their_stored_pictures(which, request):
    front = Front.load(request.getfixturevalue(which))
    painter = Painter(front, device="cpu")
    for member in (*front.policies, None, front.policies[0]):  # back and forth
        identifier = member.id if member is not None else "base"
        stored = read_samples(front.path, "report", identifier, len(front.sample_prompts))
        images = painter.draw(member, front.sample_prompts, front.sample_seeds)
        gap = np.abs(images.permute(0, 2, 3, 1).numpy().astype(int) - np.stack(stored))
        # The run drew them in larger batches, which round differently where an entry lies at a
        # half.
        assert gap.max() <= 1
        assert gap.mean() < 0.002


def test_a_picture_does_not_depend_on_the_batch(finished_run):
    front = Front.load(finished_run)
    texts, seeds = ["a", "b", "c"], [5, 6, 7]
    whole = Painter(front, device="cpu").draw(front.policies[0], texts, seeds)
    batches = []
    parts = Painter(front, device="cpu", rows_per_pass=2).draw(
        front.policies[0], texts, seeds, on_batch=batches.append
    )
    assert batches == [2, 1]
    np.testing.assert_allclose(parts.int(), whole.int(), atol=1)


def test_two_threads_draw_one_after_the_other(finished_run):
    front = Front.load(finished_run)
    policy = next(each for each in front.policies if each.id != "base")
    painter = Painter(front, device="cpu", rows_per_pass=1)
    alone = [painter.draw(member, ["a", "b"], [5, 6]) for member in (policy, None)]
    with ThreadPoolExecutor(1) as other:
        base = []

        def interrupt(_):
            if not base:
                base.append(other.submit(painter.draw, None, ["a", "b"], [5, 6]))
                wait(base, timeout=0.5)

        drawn = painter.draw(policy, ["a", "b"], [5, 6], on_batch=interrupt)
        assert torch.equal(drawn, alone[0])
        assert torch.equal(base[0].result(), alone[1])
    assert not torch.equal(*alone)


def test_a_half_precision_sdxl_draws_through_its_float32_vae(finished_run, monkeypatch):
    model = FrozenDiffusion(make_tiny_pipe("sdxl").to(torch.bfloat16))
    assert (model.unet.dtype, model.pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    monkeypatch.setattr(FrozenDiffusion, "load", lambda *_: model)
    images = Painter(Front.load(finished_run), device="cpu").draw(None, ["a", "b"], [5, 6])
    assert images.shape == (2, 3, 16, 16)
