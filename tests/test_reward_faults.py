"""The whole program with a reward of the user's own that misbehaves."""

from __future__ import annotations

import json
import math
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file

from config.settings.errors import UserError
from ddpo.model.stable_diffusion import FrozenDiffusion
from ddpo.processes import Processes
from ddpo.trainer import Trainer
from run.command_line import read_settings
from tests.support.paths import SMOKE
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import make_settings
from tests.support.worlds import SMALL, run_program

OWN = """
import torch

HANGS = None     # an event to wait for
LEFT = 10**9     # images until something happens
KIND = "none"

def judge(images, prompts):
    global LEFT
    before, LEFT = LEFT, LEFT - len(images)
    scores = images.mean(dim=(1, 2, 3))
    if KIND == "hang" and LEFT < 0:
        HANGS.wait(60)
    if KIND == "shape" :
        return scores[:, None]
    if KIND == "flaky":
        scores[1::6] = torch.nan
        if before >= 0 > LEFT:  # once
            raise ConnectionError("judge is away")
    return scores

judge.unit = "mean"
"""


@pytest.fixture(name="run")
def _run(tmp_path):
    """A function that runs the program with `own.py:judge`; `run.judge` is that module."""
    make_tiny_pipe().save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a\nb\nc\nd\n")
    own = tmp_path / "own.py"
    own.write_text(OWN)

    def run(*overrides):
        run_program(
            [f"--config={SMOKE}"],
            f"pretrained.model={tmp_path / 'model'}",
            f"prompts.train={tmp_path / 'prompts.txt'}",
            f"prompts.report={tmp_path / 'prompts.txt'}",
            f"rewards.names={own}:judge,jpeg_compressibility",
            "rewards.batch_size=8",
            "num_threads=1",
            *SMALL,
            f"logdir={tmp_path / 'logs'}",
            "run_name=own",
            *overrides,
        )

    from ddpo.rewards.lookup import build_reward

    build_reward(f"{own}:judge", make_settings().rewards, torch.device("cpu"))
    run.judge = sys.modules[str(own)]
    run.path = tmp_path / "logs" / "own"
    yield run
    del sys.modules[str(own)]


def test_a_run_survives_scores_that_are_missing_now_and_then(run):
    run.judge.KIND, run.judge.LEFT = "flaky", 2 + 16 + 8 + 10  # raises once while training
    run("rewards.on_error=skip", "rewards.max_invalid_fraction=0.7")
    metrics = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    invalid = [line["reward/judge/invalid"] for line in metrics if "reward/judge/invalid" in line]
    # of two batches of 8: NaN for the images 1 and 7 of each, or all 8 of the one that raised
    assert sorted(invalid) == [4, 10]
    for line in metrics:
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float))
    for path in run.path.rglob("*.json"):
        assert "NaN" not in path.read_text(), path
    for path in run.path.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values()), path
    front = json.loads((run.path / "front.json").read_text())
    assert [objective["unit"] for objective in front["objectives"]] == ["mean", "-kB"]


def test_too_many_missing_scores_end_the_run_before_they_teach_anything(run):
    run.judge.KIND = "flaky"
    with pytest.raises(UserError, match=r"images lack a finite score \(judge \d+, jpeg_compressib"):
        run("rewards.on_error=skip", "rewards.max_invalid_fraction=0.05")


def test_a_hanging_reward_ends_the_run_with_a_whole_checkpoint_and_a_way_back(run):
    run.judge.KIND, run.judge.HANGS = "hang", threading.Event()
    run.judge.LEFT = 2 + 16 + 8 + 16 + 16  # hangs in the second generation
    with pytest.raises(UserError, match=r"reward 'judge' hangs: .*timeout_seconds=0\.5") as error:
        run("rewards.timeout_seconds=0.5")
    path = str(error.value).split("--config.resume_from=")[1].strip()
    run.judge.HANGS.set()
    run.judge.KIND = "none"
    run(f"resume_from={path}")
    resumed = json.loads((run.path / "front.json").read_text())
    run("run_name=whole")
    whole = json.loads((run.path.parent / "whole" / "front.json").read_text())
    assert resumed["policies"] == whole["policies"]


def test_the_trial_call_has_prompts_with_the_metadata_of_those_to_come(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "def answers(images, prompts):\n"
        "    return images.mean(dim=(1, 2, 3)) * len([p.metadata for p in prompts])\n"
    )
    names = f"rewards.names={own}:answers,jpeg_compressibility"
    settings = ("prompts.train=counting", "prompts.report=counting", names)
    arguments = [f"--config.{each}" for each in settings]
    parts = (Processes.alone(), lambda *_: lambda: None, lambda: None)
    Trainer(read_settings(arguments), *parts, FrozenDiffusion(make_tiny_pipe())).close()
    arguments[1] = (
        "--config.prompts.report=emoji_report"  # reported now, not when the front is published
    )
    with pytest.raises(UserError, match=r"reward 'answers' failed on 3 images: .*metadata"):
        Trainer(read_settings(arguments), *parts, FrozenDiffusion(make_tiny_pipe()))


def test_a_wrong_shape_is_met_before_anything_is_sampled(run):
    run.judge.KIND = "shape"
    with pytest.raises(UserError, match=r"reward 'judge': expected a tensor \(3,\), got \(3, 1\)"):
        run()
    assert run.judge.LEFT == 10**9 - 3
