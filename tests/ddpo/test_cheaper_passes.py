"""Settings that make passes cheaper: what they leave out, what they leave alone, what they cost."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ddpo.calibration import initial_statistics
from ddpo.costs import Plan
from ddpo.evaluation import EvaluationSet, evaluate
from ddpo.processes import Processes
from ddpo.sampler import Sampler
from ddpo.trainer import Trainer
from front import Front
from front.adapter import Adapter
from front.analyse import Judge
from front.cards import write_front_card
from front.painter import Painter
from front.samples import read_samples
from mo_loop import Run
from mo_train import read_settings
from tests.conftest import make_settings, small_world


@pytest.fixture(scope="module", name="words")
def _words(tmp_path_factory):
    return small_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(name="make_trainer")
def _make_trainer(words):
    """Builds the program's trainer with two agents; `make_trainer("sample.num_steps=3")`."""
    made = []

    def make(*changes):
        settings = read_settings([*words, *(f"--config.{change}" for change in changes)])
        made.append(Trainer(settings, Processes.alone(), lambda *_: lambda: None))
        made[-1].load([made[-1].agents.initial_policy()] * 2, torch.eye(2))
        return made[-1]

    yield make
    for trainer in made:
        trainer.close()


def count_rows(trainer):
    """Every row that the UNet is given from now on, as the UNet sees it."""
    rows = []
    trainer.model.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


def iterate(trainer, iteration=0):
    return trainer.iterate(0, iteration, torch.eye(2), torch.tensor([0.01, 1.0]))


# --- evaluation.num_steps ------------------------------------------------------------------------


def test_policies_are_judged_with_the_steps_of_evaluation(make_trainer):
    trainer = make_trainer("train.skip_last_steps=0", "evaluation.num_steps=5")
    iterate(trainer)
    policies = trainer.snapshot()
    on = EvaluationSet.make("selection", ["a", "b"], 6, run_seed=3)
    judged = trainer.evaluate(policies, on, 6)
    sampler = Sampler(trainer.model, make_settings(sample={"num_steps": 5}).sample)
    assert len(sampler.schedule.timesteps) == 5
    expected = evaluate(policies, on, sampler, trainer.scorer, trainer.agents, 6)
    for one, other in zip(judged, expected, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.rewards, other.rewards)


def test_rows_of_training_and_of_evaluation_are_counted_as_they_pass(make_trainer):
    trainer = make_trainer("sample.num_steps=4", "evaluation.num_steps=7")
    rows = count_rows(trainer)
    stats = iterate(trainer).stats
    assert trainer.take_unet_rows() + stats.unet_rows == sum(rows)
    rows.clear()
    trainer.evaluate(trainer.snapshot(), EvaluationSet.make("selection", ["a"], 6, run_seed=3))
    assert trainer.take_unet_rows() == sum(rows) == 2 * 6 * 7
    assert trainer.take_unet_rows() == 0


def test_one_sampler_does_for_both_where_nothing_differs(make_trainer):
    trainer = make_trainer("evaluation.num_steps=4")
    assert trainer.settings.sample.num_steps == 4
    assert trainer.evaluation_sampler is trainer.sampler


def test_rewards_of_other_steps_are_no_baseline_for_advantages():
    rewards, prompts = torch.ones(2, 2), ["a", "b"]
    other = make_settings(evaluation={"num_steps": 5})
    assert set(initial_statistics(rewards, prompts, make_settings()).buffers) == {"a", "b"}
    assert not initial_statistics(rewards, prompts, other).buffers


def test_a_plan_tells_rows_of_evaluation_from_rows_of_training():
    settings = make_settings(
        sample={"num_steps": 6, "guidance_scale": 5.0}, evaluation={"num_steps": 10}
    )
    plan = Plan.of(settings, num_train_prompts=45)
    assert (plan.sample_rows_per_image, plan.evaluation_rows_per_image) == (12, 20)
    judged = plan.calibration_images + plan.selection_images + plan.report_images
    assert plan.sample_rows == plan.train_images * 12 + judged * 20


# --- the program ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="finished")
def _finished(words):
    """A whole run that trains with 4 steps and judges with 3, and the rows its UNet was given."""
    changes = ("evaluation.num_steps=3", "evaluation.report_images=8", "run_name=cheap")
    run = Run(read_settings([*words, *(f"--config.{change}" for change in changes)]))
    rows = count_rows(run.trainer)
    before = run.costs.unet_rows  # the base model has been measured already
    run.train()
    return run, before + sum(rows)


def test_a_run_costs_what_its_plan_says(finished):
    run, rows = finished
    front = json.loads((run.run_dir.path / "front.json").read_text())
    reported = front["images"]["report"] // run.settings.evaluation.report_images
    plan = Plan.of(run.settings, num_train_prompts=4, report_policies=reported)
    assert plan.sample_rows + plan.train_rows == front["unet_rows"] == rows


def test_a_finished_front_is_drawn_from_with_the_steps_it_was_judged_with(finished, tmp_path):
    front = Front.load(finished[0].run_dir.path)
    stored = read_samples(front.path, "report", "base", len(front.sample_prompts))
    painted = Painter(front, device="cpu").draw(None, front.sample_prompts, front.sample_seeds)
    assert np.array_equal(painted.permute(0, 2, 3, 1).numpy(), np.stack(stored))
    write_front_card(tmp_path, front)
    assert "num_inference_steps=3," in (tmp_path / "README.md").read_text()
    judge = Judge(front)
    again = judge.measure([Adapter.of(front.policies[0])], lambda _: None)[0]
    judge.close()
    np.testing.assert_allclose(again.returns, front.policies[0].report_returns, rtol=1e-4)
