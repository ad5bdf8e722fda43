"""The base model's scores: `mo_train.py --calibrate`."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from config.settings.errors import UserError
from config.settings.loader import load_recipe
from ddpo.calibration import calibrate
from mo_train import main
from run.audit_page import audit_file, read_audit
from run.calibrate import calibration_report, reward_spread
from run.command_line import read_command, read_settings
from tests.support.rig import make_settings


def test_the_spread_of_rewards_by_hand():
    rewards = torch.tensor([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0], [7.0, 5.0]])
    spread = reward_spread(rewards, ["a", "a", "b", "b"])
    assert spread.mean.tolist() == [4, 5]
    assert spread.within[0] == pytest.approx(2**0.5)  # (1 + 1 + 1 + 1) / 2 degrees of freedom
    # the prompts' means 2 and 6 vary by 8, of which 2 / 2 is noise of the two pictures each
    assert spread.between.tolist() == pytest.approx([7**0.5, 0])
    assert spread.std_error[0] == pytest.approx(2)
    assert spread.correlation[0, 0] == pytest.approx(1)


def test_variances_are_found_again_in_many_draws():
    generator = torch.Generator().manual_seed(0)
    prompts = [f"p{i}" for i in range(400) for _ in range(4)]
    centre = 3 * torch.randn(400, 1, generator=generator).repeat_interleave(4, dim=0)
    noise = torch.randn(1600, 2, generator=generator) @ torch.tensor([[0.5, -0.4], [0.0, 0.3]])
    spread = reward_spread(centre + noise, prompts)
    assert spread.between.tolist() == pytest.approx([3, 3], rel=0.1)
    assert spread.within.tolist() == pytest.approx([0.5, 0.5], rel=0.1)
    assert spread.correlation[0, 1] == pytest.approx(-0.8, abs=0.05)


def test_missing_scores_are_left_out():
    rewards = torch.tensor([[1.0], [3.0], [torch.nan], [5.0], [7.0]])
    spread = reward_spread(rewards, ["a", "a", "a", "b", "b"])
    assert spread.mean.item() == 4


def test_an_objective_is_scaled_in_any_unit_and_reported_if_it_does_not_vary(caplog):
    settings = read_settings(["--config.rewards.names=sharpness,colorfulness"]).rewards
    rewards = torch.tensor([[1e-9, 5.0], [3e-9, 5.0], [5e-9, 7.0], [7e-9, 7.0]])
    calibration = calibrate(rewards, ["a", "a", "b", "b"], settings)
    assert calibration.scales == pytest.approx((2**0.5 * 1e-9, 1))
    assert "sharpness" not in caplog.text
    assert "colorfulness gives all of the base model's pictures of a prompt the same" in caplog.text


def test_points_are_measured_whatever_scales_are_declared():
    rewards = torch.tensor([[1.0, 5.0], [3.0, 7.0], [5.0, 5.0], [7.0, 7.0]])
    names = "--config.rewards.names=sharpness,colorfulness"
    measured, declared = (
        calibrate(rewards, ["a", "a", "b", "b"], read_settings([names, *more]).rewards)
        for more in ([], ["--config.rewards.scales=1,10"])
    )
    assert declared.scales == (1, 10)
    assert measured.ideal == declared.ideal == pytest.approx((4 + 18**0.5, 6 + 18**0.5))
    assert measured.reference == declared.reference


def test_memory_that_runs_out_is_a_clear_error(monkeypatch):
    def fails(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("run.calibrate.measure", fails)
    with pytest.raises(UserError, match=r"Lower train\.rows_per_pass first"):
        calibration_report(read_settings([]))


def test_the_lines_printed_are_settings(capsys, tmp_path):
    """Pasted into a recipe, they equal the values that a run would have measured."""
    arguments = [
        "mo_train.py",
        "--calibrate",
        "--config.rewards.names=clip_alignment,jpeg_compressibility",
        "--config.sample.num_steps=4",
        "--config.train.max_sensitivity=0",
        "--config.evaluation.calibration_prompts=6",
        "--config.num_threads=1",
        f"--config.logdir={tmp_path}",
    ]
    read_command(arguments, main)()
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if line.startswith("config.rewards.")]
    assert [line.split(" = ")[0] for line in lines] == [
        "config.rewards.reference",
        "config.rewards.ideal",
        "config.rewards.scales",
    ]
    recipe = tmp_path / "mine.py"
    body = "\n".join(["    config = base.get_config()", *(f"    {line}" for line in lines)])
    recipe.write_text(f"from config import base\ndef get_config():\n{body}\n    return config\n")
    points = load_recipe(recipe).rewards
    for low, high, scale in zip(points.reference, points.ideal, points.scales, strict=True):
        assert high - low == pytest.approx(6 * scale, rel=0.02)
    assert read_settings([f"--config={recipe}"]).rewards.scales == tuple(points.scales)
    assert "correlation of clip_alignment and jpeg_compressibility within a prompt" in shown
    assert "warning" not in shown
    assert "audit: jpeg_compressibility: flat colours: 100 % of these pictures" in shown
    page = audit_file(tmp_path, ("clip_alignment", "jpeg_compressibility"))
    assert f"audit of the rewards, with pictures: {page}" in shown
    text = page.read_text()
    assert "jpeg_compressibility</strong>: flat colours: 100 % of these" in text
    assert text.count("data:image/png;base64,") == 3 * 9  # base model, 6 damages, 2 gradients
    found = read_audit(tmp_path, ("clip_alignment", "jpeg_compressibility"), "emoji64-sd")
    assert found["above"]["flat colours"][1] == 1
    assert found["page"] == page.name
    assert read_audit(tmp_path, ("clip_alignment", "jpeg_compressibility"), "another") is None


def test_a_base_model_that_draws_nothing_is_warned_of(tmp_path):
    pretrained = {"prediction_type": "v_prediction"}
    evaluation = {"num_steps": 0, "calibration_prompts": 4}
    sample = {"num_steps": 4}
    settings = make_settings(pretrained=pretrained, evaluation=evaluation, sample=sample)
    assert (
        calibration_report(dataclasses.replace(settings, logdir=str(tmp_path)))
        .splitlines()[-1]
        .startswith("warning: most of the base model's pictures are flat: their contrast is 0.0")
    )
