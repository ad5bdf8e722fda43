"""Models whose UNet reads the guidance scale, as LCM_Dreamshaper_v7: one UNet row per picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler

from config.settings.errors import UserError
from ddpo.cost.footprint import plan_of
from ddpo.ddim import name_of
from ddpo.model.stable_diffusion import FrozenDiffusion
from ddpo.sampler import Sampler
from front import Front
from front.errors import ChoiceError
from front.pictures.painter import Painter
from front.publish import FrontPublisher
from mo_train import train
from run.command_line import read_settings
from run.dry_run import dry_run
from run.samples import read_samples
from run.session import Session
from tests.support.pipelines import LETTERS, load_plain, make_tiny_pipe
from tests.support.rig import make_rig, make_settings
from tests.support.worlds import world_around

SCALE = 8.5  # LCM_Dreamshaper_v7's own


def make_lcm(kind="sd1"):
    """A pipeline of the family that loads it, with LCM's scheduler."""
    pipe = make_tiny_pipe(kind, time_cond_proj_dim=8)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return pipe


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    """As published: the folder of a LatentConsistencyModelPipeline."""
    path = tmp_path_factory.mktemp("lcm")
    pipe = LatentConsistencyModelPipeline(**make_lcm().components, requires_safety_checker=False)
    pipe.save_pretrained(path / "model")
    return path


@pytest.mark.usefixtures("rounded_as_diffusers")
def test_pictures_are_bitwise_those_of_the_latent_consistency_pipeline(folder):
    plain = load_plain(folder / "model")
    assert type(plain) is LatentConsistencyModelPipeline
    plain.set_progress_bar_config(disable=True)
    settings = make_settings(pretrained={"model": str(folder / "model")})
    model = FrozenDiffusion.load(settings.pretrained)
    assert name_of(model.scheduler()) == "lcm"
    rig = make_rig(1, model.pipe, sample={"guidance_scale": SCALE})
    batch = rig.batch(1, 2)
    expected = plain(
        list(batch.texts),
        generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
        num_inference_steps=4,
        guidance_scale=SCALE,
        output_type="pt",
    ).images
    assert torch.equal(rig.rollout(batch).images, expected)
    assert rig.agents.take_num_rows() == 2 * 4  # pictures x steps


@pytest.mark.parametrize(
    ("kind", "rule", "rows"),  # a pair takes one row; one more to measure the policy that sampled
    [("sd1", "ddpo", 2 * 2 * 3), ("sdxl", "diffusion_nft", 2 * 2 * 3 * 2)],
)
def test_agents_together_are_agents_alone_and_their_ratio_is_one(kind, rule, rows):
    changes = {"sample": {"guidance_scale": SCALE}, "train": {"update_rule": rule}}
    together = make_rig(2, make_lcm(kind), **changes)
    together.perturb()
    rollout = together.rollout(together.batch(2, 2))
    alone = make_rig(1, make_lcm(kind), **changes)
    alone.agents.load(0, together.agents.snapshot(1))
    own = alone.rollout(alone.batch(1, 2, first_agent=1))
    torch.testing.assert_close(own.latents, rollout.latents[2:], rtol=0, atol=1e-4)
    advantages = torch.tensor([[1.0, -0.5], [0.3, 0.8]])
    together.agents.take_num_rows()
    stats = together.updater.update(together.agents, rollout, advantages, [1, 2])
    assert together.agents.take_num_rows() == rows
    assert stats.ratio_error.nan_to_num(0).max() < 1e-5
    alone.updater.update(alone.agents, own, advantages[1:], [2])
    torch.testing.assert_close(
        alone.agents.snapshot(0).adapter, together.agents.snapshot(1).adapter, rtol=0, atol=1e-4
    )


def test_another_guidance_scale_draws_another_picture():
    """One sampler's guidance scale does not stay with the encoded prompts for the next."""
    rig = make_rig(1, make_lcm(), sample={"guidance_scale": SCALE})
    images = rig.rollout(rig.batch(1, 1)).images
    rig.sampler = Sampler(rig.model, make_settings(sample={"num_steps": 4}).sample)
    assert not torch.equal(rig.rollout(rig.batch(1, 1)).images, images)


def test_what_only_a_second_row_could_read_is_refused(folder):
    sample = {"guidance_scale": SCALE, "negative_prompt": "b", "guidance_rescale": 0.7}
    settings = make_settings(pretrained={"model": str(folder / "model")}, sample=sample)
    words = r"sample\.negative_prompt='b' and sample\.guidance_rescale=0\.7 cannot be used"
    with pytest.raises(UserError, match=words):
        dry_run(settings)
    with pytest.raises(UserError, match=words):
        FrozenDiffusion.load(settings.pretrained).schedule(settings.sample)


@pytest.fixture(scope="module", name="run")
def _run(folder):
    """A finished run by gradients of rewards, and its settings."""
    changes = (
        f"sample.guidance_scale={SCALE}",
        "rewards.names=colorfulness,brightness",
        "train.update_rule=reward_gradient",
        "train.updates_per_epoch=1",
        "advantage.normalisation=frozen",
        "evolution.evolutionary_generations=0",
        "evaluation.num_steps=3",
        "evaluation.blends_fraction=0",
    )
    words = [*world_around(folder), *(f"--config.{change}" for change in changes)]
    settings = read_settings(words)
    with Session.open(settings) as run:
        train(run, FrontPublisher())
    return run.directory.path, settings


def test_a_run_takes_the_rows_of_its_plan_and_its_policies_draw_their_stored_pictures(run):
    path, settings = run
    record = json.loads((path / "front.json").read_text())
    reported = record["images"]["report"] // settings.evaluation.report_images
    plan = plan_of(settings, num_train_prompts=4, report_policies=reported)
    assert plan.evaluation_rows_per_image == 3
    assert plan.sample_rows + plan.train_rows == record["unet_rows"]
    assert "that reads its guidance scale" in dry_run(settings)
    front = Front.load(path)
    painter = Painter(front, device="cpu")
    member = front.policies[0]
    stored = read_samples(front.path, "report", member.id, len(front.sample_prompts))
    images = painter.draw(member, front.sample_prompts, front.sample_seeds)
    gap = np.abs(images.permute(0, 2, 3, 1).numpy().astype(int) - np.stack(stored))
    assert gap.max() <= 1
    with pytest.raises(ChoiceError, match="the negative prompt cannot be used"):
        painter.draw(member, [LETTERS[0]], [1], negative_prompt="b")
