"""The cost of the models of rewards and guards: FLOPs, bytes, downloads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ddpo.cost.footprint import Meter, attention_as_on_a_gpu
from ddpo.cost.plan import Plan, RewardFootprint, expected_memory, reward_flops, rows_that_fit
from ddpo.cost.rewards import reward_footprint, reward_models
from ddpo.rewards.published import CLIP_L_14, HPS_V2, IMAGE_REWARD, PICK_SCORE
from tests.support.measures import FOOTPRINT
from tests.support.rig import make_settings

CLIP = "openai/clip-vit-large-patch14"
GRADIENT = {"update_rule": "reward_gradient", "updates_per_epoch": 1}


def rewards_of(*names, guards=(), train=GRADIENT, **rewards):
    return make_settings(rewards={"names": names, **rewards}, guards={"names": guards}, train=train)


def test_rewards_and_guards_that_share_a_model_pass_it_once():
    settings = rewards_of(
        "aesthetic_score",
        "clip_score",
        guards=("image_reward", "diversity"),
        sources=(f"diversity.clip={CLIP}",),
    )
    cost = reward_footprint(settings)
    assert cost.weight_bytes == 4 * (CLIP_L_14.parameters + IMAGE_REWARD.parameters)
    assert cost.score_flops == CLIP_L_14.score_flops
    assert cost.ascent_flops == CLIP_L_14.ascent_flops
    assert cost.guard_flops == CLIP_L_14.score_flops + IMAGE_REWARD.score_flops
    half = dataclasses.replace(settings.rewards, dtype="bfloat16")
    halved = reward_footprint(dataclasses.replace(settings, rewards=half))
    assert halved.weight_bytes == cost.weight_bytes / 2
    assert halved.ascent_bytes == cost.ascent_bytes / 2


def test_what_is_not_followed_by_gradient_costs_no_backward_pass():
    names = ("pick_score", "jpeg_compressibility")
    assert reward_footprint(rewards_of(*names)).ascent_flops == PICK_SCORE.ascent_flops
    assert reward_footprint(rewards_of(*names, black_boxes=names)).ascent_flops == 0
    ddpo = reward_footprint(rewards_of(*names, train={"update_rule": "ddpo"}))
    assert (ddpo.ascent_flops, ddpo.ascent_bytes) == (0, 0)
    assert ddpo.score_flops == PICK_SCORE.score_flops


def test_what_runs_elsewhere_or_is_not_published_counts_nothing():
    names = ("hps_v2", "mine.py:taste")
    assert reward_footprint(rewards_of(*names)).weight_bytes == 4 * HPS_V2.parameters
    assert reward_footprint(rewards_of(*names, device="cpu")) == RewardFootprint()
    remote = rewards_of(*names, remotes=("hps_v2=http://judge:1/score",))
    assert reward_footprint(remote) == RewardFootprint()
    assert reward_footprint(rewards_of("clip_alignment", "brightness")) == RewardFootprint()


def test_a_part_from_elsewhere_is_known_by_its_source_or_taken_for_the_default():
    def models(*sources):
        names = ("clip_score", "clip_alignment")
        return reward_models(names, rewards_of(*names, sources=sources).rewards)

    assert models() == {CLIP: CLIP_L_14}
    assert models(f"clip_alignment.clip={CLIP}") == {CLIP: CLIP_L_14}
    assert models("clip_score.clip=my/clip") == {"my/clip": CLIP_L_14}
    assert models("clip_score.clip=emoji-clip") == {}


def test_flops_and_memory_of_rewards_add_up():
    settings = make_settings(
        sample={"prompts_per_iteration": 2, "images_per_prompt": 2, "rows_per_pass": 8}
        | {"offload_rollouts": True},
        train={**GRADIENT, "rows_per_pass": 4},
        evolution={"num_agents": 2},
        rewards={"names": ("brightness", "colorfulness"), "batch_size": 3},
    )
    plan = Plan.of(settings, num_train_prompts=2, num_trained_steps=0, report_policies=3)
    rewards = RewardFootprint(
        weight_bytes=500,
        score_flops=7,
        ascent_flops=20,
        guard_flops=11,
        score_bytes=13,
        ascent_bytes=1000,
    )
    judged = plan.selection_images + plan.report_images
    expected = 7 * plan.images + 20 * plan.train_images + 11 * judged
    assert reward_flops(plan, rewards) == expected
    footprint = dataclasses.replace(FOOTPRINT, rewards=rewards)
    memory = expected_memory(settings, plan, footprint)
    assert (memory.rewards, memory.scoring, memory.training) == (500, 3 * 13, 3 * 1000)
    assert memory.lasting == 1500 + memory.adapters + memory.rollout
    assert memory.drawing == 3 * 13 + max(8 * 3, 8 * 7)
    room = (memory.lasting + 2000.5) / 0.9
    assert rows_that_fit(settings, memory, footprint, room) == 2  # pictures, each of one row


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "width", "layers"), [(CLIP_L_14, 1024, 24), (PICK_SCORE, 1280, 32)]
)
def test_the_table_is_what_clip_costs(model, width, layers):
    """Their configurations on the hub; the text halves are as wide as the embeddings."""
    from transformers import CLIPConfig, CLIPModel

    embedding, depth = (768, 12) if width == 1024 else (1024, 24)
    act = "quick_gelu" if width == 1024 else "gelu"
    common = {"hidden_act": act, "projection_dim": embedding}
    text = {"hidden_size": embedding, "intermediate_size": 4 * embedding, **common}
    text |= {"num_hidden_layers": depth, "num_attention_heads": embedding // 64}
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "patch_size": 14, **common}
    vision |= {"num_hidden_layers": layers, "num_attention_heads": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=embedding)
    with torch.device("meta"), attention_as_on_a_gpu():
        clip = CLIPModel(config).requires_grad_(False).eval()
        picture, score, ascent = torch.zeros(1, 3, 224, 224), Meter(clip), Meter(clip)
        with torch.no_grad(), score:
            clip.get_image_features(pixel_values=picture)
        picture.requires_grad_()
        with ascent:
            clip.get_image_features(pixel_values=picture).pooler_output.sum().backward()
    assert sum(parameter.numel() for parameter in clip.parameters()) == model.parameters
    assert score.flops == pytest.approx(model.score_flops, rel=0.01)
    assert ascent.flops == pytest.approx(model.ascent_flops, rel=0.01)
    assert score.peak / 4 == pytest.approx(model.score_entries, rel=0.05)
    assert ascent.peak / 4 == pytest.approx(model.ascent_entries, rel=0.05)
    assert model.file_bytes == pytest.approx(4 * model.parameters, rel=0.01)
