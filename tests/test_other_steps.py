"""A run that learns from pictures of fewer steps than it is judged by: what it costs and leaves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ddpo.agents.adapter import Adapter
from ddpo.cost.footprint import plan_of
from front import Front
from front.analysis.judge import Judge
from front.cards import write_front_card
from front.pictures.painter import Painter
from front.publish import FrontPublisher
from mo_train import train
from run.command_line import read_settings
from run.samples import read_samples
from run.session import Session
from tests.support.measures import count_rows
from tests.support.worlds import small_world


@pytest.fixture(scope="module", name="words")
def _words(tmp_path_factory):
    return small_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", name="finished")
def _finished(words):
    """A whole run, and the rows its UNet was given."""
    changes = (
        "train.max_sensitivity=0",
        "evaluation.num_steps=3",
        "evaluation.report_images=8",
        "evaluation.blends_fraction=0",
    )
    settings = read_settings([*words, *(f"--config.{change}" for change in changes)])
    with Session.open(settings) as run:
        rows = count_rows(run.trainer)
        before = run.recorder.costs.unet_rows  # the base model has been measured already
        train(run, FrontPublisher())
    return run, before + sum(rows)


def test_a_run_costs_what_its_plan_says(finished):
    run, rows = finished
    front = json.loads((run.directory.path / "front.json").read_text())
    reported = front["images"]["report"] // run.settings.evaluation.report_images
    plan = plan_of(run.settings, num_train_prompts=4, report_policies=reported)
    assert plan.sample_rows + plan.train_rows == front["unet_rows"] == rows


def test_a_finished_front_is_drawn_from_with_the_steps_it_was_judged_with(finished, tmp_path):
    front = Front.load(finished[0].directory.path)
    stored = read_samples(front.path, "report", "base", len(front.sample_prompts))
    painted = Painter(front, device="cpu").draw(None, front.sample_prompts, front.sample_seeds)
    assert np.array_equal(painted.permute(0, 2, 3, 1).numpy(), np.stack(stored))
    write_front_card(tmp_path, front)
    assert "num_inference_steps=3," in (tmp_path / "README.md").read_text()
    judge = Judge(front)
    again = judge.measure([Adapter.of(front.policies[0])], lambda _: None)[0]
    judge.close()
    np.testing.assert_allclose(again.returns, front.policies[0].report_returns, rtol=1e-4)
