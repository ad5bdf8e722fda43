"""The trainer: what it draws, judges and counts, with the settings of the program."""

from __future__ import annotations

import pytest
import torch

from ddpo.calibration import initial_statistics
from ddpo.cost.footprint import plan_of
from ddpo.evaluation import evaluate, evaluation_set
from ddpo.processes import Processes
from ddpo.sampler import Sampler
from ddpo.speed.fused import FusedGroupNorm
from ddpo.trainer import Trainer
from run.command_line import read_settings
from tests.support.measures import count_rows
from tests.support.rig import make_settings
from tests.support.worlds import small_world


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


def iterate(trainer, iteration=0):
    trainer.scales = torch.tensor([0.01, 1.0])
    batch = trainer.draw(0, iteration)
    return trainer.update(batch, trainer.advantages(batch))


@pytest.mark.filterwarnings("default")  # compilers have their own
def test_at_any_speed_a_model_learns_the_same(make_trainer):
    stats = []
    with torch.compiler.set_stance("force_eager"):
        for how in ("off", "layers", "fused"):
            trainer = make_trainer(f"speed={how}")
            for part in (trainer.model.pipe.unet, trainer.model.pipe.vae):
                is_fused = any(type(each) is FusedGroupNorm for each in part.modules())
                assert is_fused == (how == "fused")
            stats.append(iterate(trainer).grad_norm)
    for norm in stats[1:]:
        torch.testing.assert_close(norm, stats[0], rtol=1e-3, atol=0)


def test_gradients_of_rewards_are_followed_only_after_calibration(make_trainer):
    """Otherwise DDPO would learn in their place, without a word."""
    trainer = make_trainer("train.update_rule=reward_gradient", "train.updates_per_epoch=1")
    with pytest.raises(RuntimeError, match=r"Trainer\.calibrate comes before updates"):
        iterate(trainer)


def test_policies_are_judged_with_the_steps_of_evaluation(make_trainer):
    trainer = make_trainer("train.max_sensitivity=0", "evaluation.num_steps=5")
    iterate(trainer)
    policies = trainer.policies()
    on = evaluation_set("selection", ["a", "b"], 6, run_seed=3)
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
    iterate(trainer)
    assert trainer.take_unet_rows() == sum(rows)
    rows.clear()
    trainer.evaluate(trainer.policies(), evaluation_set("selection", ["a"], 6, run_seed=3))
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
    plan = plan_of(settings, num_train_prompts=45)
    assert (plan.sample_rows_per_image, plan.evaluation_rows_per_image) == (12, 20)
    judged = plan.calibration_images + plan.selection_images + plan.report_images
    assert plan.sample_rows == plan.train_images * 12 + judged * 20
