"""The cost of a run, before it runs: counts, FLOPs, bytes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from config.settings.errors import UserError
from ddpo.cost.footprint import (
    Meter,
    known_architecture,
    load_architecture,
    measure_footprint,
    plan_of,
)
from ddpo.cost.plan import (
    expected_memory,
    hours,
    rows_that_fit,
    total_flops,
)
from run.command_line import read_settings
from tests.support.measures import FOOTPRINT, SD15, footprint_of
from tests.support.rig import make_settings


def test_a_plan_counts_every_image_and_row():
    """A small run counted by hand."""
    settings = make_settings(
        sample={
            "num_steps": 10,
            "guidance_scale": 5.0,
            "prompts_per_iteration": 3,
            "images_per_prompt": 2,
        },
        train={"num_inner_epochs": 2, "updates_per_epoch": 3, "timestep_fraction": 0.5},
        evaluation={"selection_images": 7, "report_images": 11, "calibration_prompts": 5},
        evolution={
            "num_agents": 4,
            "warmup_generations": 1,
            "evolutionary_generations": 2,
            "iterations_per_generation": 6,
        },
    )
    plan = plan_of(settings, num_train_prompts=20, report_policies=9)
    assert plan.images_per_iteration == 4 * 6
    assert plan.num_iterations == 3 * 6
    assert plan.train_images == 18 * 24
    assert plan.optimiser_steps == 18 * 2 * 3
    assert plan.calibration_images == 5 * 4
    assert plan.selection_images == 7 * (1 + 3 * 4)
    assert plan.report_images == 9 * 11
    # guidance doubles rows; of 10 steps the last two are skipped and half of the rest are trained
    assert plan.train_rows == 18 * 24 * 2 * (4 * 2)
    assert plan.sample_rows == (18 * 24 + 20 + 7 * 13 + 99) * 10 * 2


def test_stable_diffusion_has_its_published_size():
    found = footprint_of(SD15)
    assert found.unet_parameters == 859_520_964
    assert found.vae_parameters == 83_653_863
    assert found.text_parameters == 123_060_480


@pytest.mark.slow
def test_stable_diffusion_costs_what_was_measured_on_a_gpu():
    """0.803 TFLOP and 0.714 GB per row (flash attention, bfloat16); checkpointing: 0.179 GB.

    `benchmarks/gpu.py` on an H100, from 24 to 48 rows; a backward pass takes 1.1 to 1.3 forwards.
    """
    found, saving = footprint_of(SD15), footprint_of(SD15, gradient_checkpointing=True)
    assert found.train_bytes == pytest.approx(0.714e9, rel=0.02)
    assert saving.train_bytes == pytest.approx(0.179e9, rel=0.02)
    assert found.sample_flops == pytest.approx(0.803e12, rel=0.01)
    assert 2.1 < found.train_flops / found.sample_flops < 2.3
    assert found.adapter_parameters == 797_184  # rank 4 on the attention projections
    assert (found.latent_entries, found.image_entries) == (4 * 64 * 64, 3 * 512 * 512)
    assert found.weight_bytes == pytest.approx(2 * 1.066e9, rel=1e-3)


@pytest.mark.slow
def test_plain_layers_take_what_was_measured_on_a_gpu():
    """0.80 GB per row; faster convolutions keep no inputs."""
    found, plain = footprint_of(SD15), footprint_of(SD15, speed="off")
    assert plain.train_bytes == pytest.approx(0.80e9, rel=0.05)
    assert plain.train_flops == found.train_flops
    assert found.train_bytes < 0.87 * plain.train_bytes


def test_fused_layers_are_expected_to_take_less():
    plain, changed = footprint_of(SD15), footprint_of(SD15, speed="fused")
    assert changed.train_bytes == pytest.approx(0.563e9, rel=0.01)  # an H100's, of 48 rows
    assert changed.train_bytes < 0.8 * plain.train_bytes
    assert changed.decode_bytes < 0.95 * plain.decode_bytes
    assert (changed.train_flops, changed.sample_flops) == (plain.train_flops, plain.sample_flops)


def test_every_product_is_counted():
    a, b = (torch.zeros(2, 3, 3, device="meta") for _ in range(2))
    meter = Meter(torch.nn.Identity())
    with meter:
        torch.bmm(a, b)
        torch.baddbmm(a, a, b)
        a.baddbmm_(a, b)
    assert meter.flops == 3 * 2 * 2 * 3**3


def test_checkpointing_saves_bytes_and_costs_a_forward_pass():
    plain, saving = footprint_of(SD15), footprint_of(SD15, gradient_checkpointing=True)
    assert saving.train_bytes < 0.6 * plain.train_bytes
    extra = (saving.train_flops - plain.train_flops) / plain.sample_flops
    assert 0.5 < extra < 1  # what no backward pass asks for is not repeated
    assert saving.sample_bytes == plain.sample_bytes


def test_bytes_are_those_of_real_tensors():
    """The meter on the meta device against the same pass with memory, followed by hand."""
    layer = torch.nn.Linear(8, 8, bias=False)
    meter = Meter(layer)
    with torch.no_grad(), meter:
        x = torch.ones(4, 8)  # 128 bytes
        y = layer(x)  # 128 more
        del x
        y = y * 2  # 128 more while the old one lives
    assert meter.peak == 2 * 128
    assert meter.flops == 2 * 4 * 8 * 8


def test_an_unknown_model_is_named():
    with pytest.raises(UserError, match="'nobody/nothing' is not known here"):
        load_architecture("nobody/nothing")
    with pytest.raises(UserError, match="is not known here"):
        load_architecture("/no/such/folder")


def test_known_architectures_can_be_read():
    for name in ("sd-1.5", "sd-2.1", "sdxl"):
        assert {"unet", "vae", "text_encoder", "scheduler"} <= set(known_architecture(name))


@pytest.mark.parametrize(("rule", "num"), [("ddpo", 0), ("awm", 1), ("diffusion_nft", 2)])
def test_rules_on_the_forward_process_keep_noise_and_old_predictions_of_every_step(rule, num):
    for offload in (False, True):
        settings = make_settings(
            sample={"prompts_per_iteration": 2, "images_per_prompt": 2, "rows_per_pass": 8}
            | {"offload_rollouts": offload},
            train={"update_rule": rule},
            evolution={"num_agents": 2},
        )
        memory = expected_memory(settings, plan_of(settings, num_train_prompts=2), FOOTPRINT)
        assert memory.measures == (0 if offload else num * 4 * 8 * 10 * 16)
        turns = max(memory.sampling, memory.decoding, memory.training, memory.rollout)
        lasting = 1000 + memory.adapters + memory.rollout + memory.measures
        assert memory.peak == lasting + turns


def test_a_single_pass_samples_nothing_twice_and_keeps_a_gradient_of_every_sample():
    sizes = {"prompts_per_iteration": 2, "images_per_prompt": 2, "guidance_scale": 5.0}
    plans, rollouts = [], []
    for single_pass in (False, True):
        settings = make_settings(
            sample={**sizes, "rows_per_pass": 8},
            train={"updates_per_epoch": 1, "single_pass": single_pass},
            evolution={"num_agents": 2},
        )
        plans.append(plan_of(settings, num_train_prompts=2))
        rollouts.append(expected_memory(settings, plans[-1], FOOTPRINT).rollout)
    assert [plan.sample_rows_per_image for plan in plans] == [2 * 10, 2 * 2]
    assert [plan.train_rows_per_image for plan in plans] == [2 * 8, 2 * 8]
    assert rollouts[1] - rollouts[0] == 4 * 8 * FOOTPRINT.adapter_parameters  # float32, 8 samples


@pytest.mark.parametrize(
    ("names", "black_boxes", "kl_coef", "pairs"),
    [
        (("colorfulness", "jpeg_compressibility"), (), 0, 0),
        (("colorfulness", "jpeg_compressibility"), ("colorfulness",), 0, 2 * 8),
        (("colorfulness", "mine.py:taste"), (), 0, 2 * 8),
        (("colorfulness", "brightness"), (), 0.1, 2 * 8),
    ],
)
def test_gradients_of_rewards_cost_the_last_steps_and_pairs_for_black_boxes(
    names, black_boxes, kl_coef, pairs
):
    settings = make_settings(
        rewards={"names": names, "black_boxes": black_boxes},
        sample={"prompts_per_iteration": 2, "images_per_prompt": 2, "guidance_scale": 5.0}
        | {"offload_rollouts": True},
        train={
            "update_rule": "reward_gradient",
            "updates_per_epoch": 1,
            "gradient_steps": 3,
            "rows_per_pass": 8,
            "kl_coef": kl_coef,
        },
    )
    plan = plan_of(settings, num_train_prompts=2)
    assert plan.train_rows_per_image == 2 * 3 + pairs
    assert plan.base_rows_per_image == (pairs if kl_coef else 0)
    others = dataclasses.replace(plan, is_decoded_back=False)
    added = total_flops(plan, FOOTPRINT) - total_flops(others, FOOTPRINT)
    assert added == 150 * plan.train_images
    memory = expected_memory(settings, plan, FOOTPRINT)
    assert memory.training == max(8 * 30, 4 * 40)
    assert rows_that_fit(settings, memory, FOOTPRINT, (memory.lasting + 500.5) / 0.9) == 16
    slow = dataclasses.replace(FOOTPRINT, decode_back_bytes=100)
    assert rows_that_fit(settings, memory, slow, (memory.lasting + 500.5) / 0.9) == 10


@pytest.mark.parametrize(
    ("recipe", "budget"),
    [
        ("aesthetic_compressibility", 10e9),
        pytest.param("sdxl_aesthetic_compressibility", 24e9, marks=pytest.mark.slow),
    ],
)
def test_one_step_of_gradients_fits_a_small_card(recipe, budget):
    changes = {
        "train.update_rule": "reward_gradient",
        "train.gradient_steps": 1,
        "train.updates_per_epoch": 1,
        "train.gradient_checkpointing": True,
        "train.rows_per_pass": 12,
        "sample.rows_per_pass": 12,
        "pretrained.offload_text_encoders": True,
    }
    words = [f"--config.{name}={value}" for name, value in changes.items()]
    settings = read_settings([f"--config=config/{recipe}.py", *words])
    plan, footprint = plan_of(settings, num_train_prompts=45), measure_footprint(settings)
    memory = expected_memory(settings, plan, footprint)
    assert memory.peak < 0.9 * budget
    assert rows_that_fit(settings, memory, footprint, budget) >= 12


def test_memory_and_flops_add_up():
    settings = make_settings(
        sample={"prompts_per_iteration": 2, "images_per_prompt": 2, "rows_per_pass": 8},
        train={"rows_per_pass": 4},
        evolution={"num_agents": 2},
    )
    plan = plan_of(settings, num_train_prompts=2)
    memory = expected_memory(settings, plan, FOOTPRINT)
    assert memory.adapters == 4 * 4 * 2 * 10  # weights, gradient, two moments of two agents
    assert memory.rollout == 4 * 8 * (11 * 16 + 48)
    assert (memory.sampling, memory.decoding, memory.training) == (8 * 3, 8 * 7, 4 * 30)
    assert memory.peak == 1000 + memory.adapters + 2 * memory.rollout  # while chunks are joined
    assert memory.measures == 0
    large = dataclasses.replace(FOOTPRINT, image_entries=3 * 256 * 256)
    assert expected_memory(settings, plan, large).decoding == 7  # one picture at a time
    plan = dataclasses.replace(plan, report_policies=1)
    flops = plan.sample_rows * 100 + plan.train_rows * 220 + plan.images * 50
    assert total_flops(plan, FOOTPRINT) == flops
    assert hours(3.6e15, tflops_per_second=10, utilisation=0.5) == pytest.approx(0.2)
