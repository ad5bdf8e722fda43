"""The report on a run in advance: `mo_train.py --dry_run`."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from config.settings.errors import UserError
from ddpo.cost.footprint import measure_footprint
from mo_train import main
from run.command_line import read_command
from run.dry_run import dry_run, reward_state
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import make_settings


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_default_recipe_on_the_command_line(capsys):
    """720 training images, 45 x 4 to calibrate."""
    read_command(["mo_train.py", "--dry_run", "--config.evaluation.report_images=100"], main)()
    report = capsys.readouterr().out
    for line in (
        "clip_alignment [cosine]: ready",
        "train prompts: 45, the first 'cat', 'dog', 'horse'",
        "report prompts: 53, the first 'elephant', ",
        "6 generations of 3 iterations; 5 agents x 8 = 40 images per iteration",
        "images: 720 to train on, 180 to calibrate, 1,488 for selection, 100 per policy",
        "optimiser steps of an agent: 1 per iteration, 18 in all",
        "of which, on an RTX 4090: calibration under a minute, selection under a minute, the",
        "drawn by ddim in 4 steps, at 751, 501, 251, 1",
        "none for the base model: it is on this machine",
    ):
        assert f"  {line}" in report


def test_wrong_settings_are_met_by_a_dry_run_too(capsys):
    with pytest.raises(SystemExit) as error:
        read_command(["mo_train.py", "--dry_run", "--config.seed=-1"], main)
    assert error.value.code == 2
    assert "seed=-1 must be at least 0" in capsys.readouterr().err


def test_a_lora_that_is_merged_first_is_downloaded_too(tmp_path):
    def downloads(lora):
        return dry_run(make_settings(pretrained={"lora": lora}))

    assert "someone/style: its .safetensors file" in downloads("someone/style")
    with pytest.raises(UserError, match=r"holds 0 \.safetensors files"):
        downloads(str(tmp_path))
    key = "lora_unet_mid_block_attentions_0_proj_in"
    state = {f"{key}.lora_{part}.weight": torch.ones(2, 2) for part in ("up", "down")}
    save_file(state, tmp_path / "style.safetensors")
    assert "LoRA" not in downloads(str(tmp_path))
    save_file({f"{key}.oft_blocks": torch.ones(1)}, tmp_path / "style.safetensors")
    with pytest.raises(UserError, match="cannot be merged here"):
        downloads(str(tmp_path))


def test_latents_need_not_be_square_but_their_size_known(tmp_path):
    pipe = make_tiny_pipe()
    for sample_size, entries in (([8, 16], 4 * 8 * 16), (None, 0)):
        pipe.unet.register_to_config(sample_size=sample_size)
        pipe.save_pretrained(tmp_path / "model")
        settings = make_settings(pretrained={"model": str(tmp_path / "model")})
        if entries:
            assert measure_footprint(settings).latent_entries == entries
        else:
            with pytest.raises(UserError, match=r"set pretrained\.height and pretrained\.width"):
                measure_footprint(settings)


def test_an_unknown_model_ends_a_dry_run_with_its_name():
    with pytest.raises(UserError, match=r"the architecture of pretrained\.model='nobody/nothing'"):
        dry_run(make_settings(pretrained={"model": "nobody/nothing"}))


def test_a_target_name_without_a_layer_ends_a_dry_run_with_its_name():
    with pytest.raises(UserError, match=r"adapter\.target_modules=.* none ends in 'to_qq'"):
        dry_run(make_settings(adapter={"target_modules": ("to_qq",)}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample": {"num_steps": 5000}}, "num_steps=5000 does not fit the 1000"),
        ({"evaluation": {"num_steps": 5000}}, "num_steps=5000 does not fit the 1000"),
        ({"sample": {"sampler": "lcm", "num_steps": 51}}, r"distilled at 50 of them.* to 50, for"),
        ({"sample": {"sampler": "lcm", "eta": 0.5}}, "has no effect on sampler 'lcm'"),
        ({"sample": {"num_steps": 2}}, "none of the 2 denoising steps of this model can be"),
        ({"rewards": {"names": ("colorfulness", "no_such_module:f")}}, "no_such_module"),
        ({"guards": {"names": ("no_such_module:f",)}}, "no_such_module:f cannot be built"),
    ],
)
def test_what_a_run_refuses_a_dry_run_refuses(changes, words):
    with pytest.raises(UserError, match=words):
        dry_run(make_settings(**{"train": {"update_rule": "ddpo"}, **changes}))


def test_a_reward_is_ready_or_says_what_it_lacks(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text("import no_such_package\ndef warmth(images, prompts): ...\n")
    settings = make_settings().rewards
    assert reward_state("jpeg_compressibility", settings) == "ready"
    assert reward_state("aesthetic_score", settings).startswith("needs a download: openai/clip")
    assert "No module named 'no_such_package'" in reward_state(f"{own}:warmth", settings)
