"""Settings that make passes cheaper: what they leave out, what they leave alone, what they cost."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import ddpo.trainer
from config.settings.errors import ConfigError, UserError
from config.settings.rules import process_problems
from ddpo.agents.adapter import Adapter
from ddpo.best_of import most_extreme
from ddpo.calibration import initial_statistics
from ddpo.collect import collect
from ddpo.cost.plan import Plan
from ddpo.ddim import gaussian_log_prob, make_schedule, output_coefficient, step_mean
from ddpo.evaluation import evaluate, evaluation_set
from ddpo.processes import Processes
from ddpo.sampler import Sampler
from ddpo.speed.fused import FusedGroupNorm
from ddpo.steps import noise_windows, step_weights
from ddpo.trainer import Trainer
from ddpo.types import Rollout
from front import Front
from front.analyse import Judge
from front.cards import write_front_card
from front.painter import Painter
from mo_loop import Run
from mo_train import read_settings
from run.samples import read_samples
from tests.support.measures import count_rows
from tests.support.pipelines import make_tiny_pipe, sd_scheduler
from tests.support.rig import make_rig, make_settings
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
    return trainer.iterate(0, iteration, torch.eye(2), torch.tensor([0.01, 1.0]))


@pytest.mark.parametrize("how", ["update_rule=ddpo", "update_rule=diffusion_nft", "single_pass=1"])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_the_trial_of_a_compiler_has_the_shape_of_training(make_trainer, how, guidance_scale):
    trainer = make_trainer(
        f"train.{how}",
        f"sample.guidance_scale={guidance_scale}",
        "train.updates_per_epoch=1",
        "train.rows_per_pass=8",
    )
    rows = count_rows(trainer)
    trainer.updater.trial_pass(trainer.agents)
    (trial,) = rows
    iterate(trainer)
    assert rows[-1] == trial == 8  # the update is the last there is


@pytest.mark.filterwarnings("default")  # compilers have their own
def test_a_compiled_unet_judges_one_set_after_the_other(make_trainer):
    sets = [evaluation_set("selection", ["a", "b"], num, run_seed=3) for num in (8, 6)]
    returns = []
    for backend in ("", "eager"):
        trainer = make_trainer(f"pretrained.compile={backend}", "train.rows_per_pass=8")
        assert hasattr(trainer.agents.unet, "_orig_mod") == bool(backend)
        (policy, _) = trainer.snapshot()
        returns.append(torch.cat([trainer.evaluate([policy], on)[0].returns for on in sets]))
    torch.testing.assert_close(*returns, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("default")  # compilers have their own
def test_a_fused_model_learns_the_same(make_trainer):
    stats = []
    with torch.compiler.set_stance("force_eager"):
        for is_fused in (False, True):
            trainer = make_trainer(f"pretrained.fuse={is_fused}")
            for part in (trainer.model.pipe.unet, trainer.model.pipe.vae):
                assert any(type(each) is FusedGroupNorm for each in part.modules()) == is_fused
            stats.append(iterate(trainer).stats.grad_norm)
    torch.testing.assert_close(*stats, rtol=1e-3, atol=0)


# --- evaluation.num_steps ------------------------------------------------------------------------


def test_policies_are_judged_with_the_steps_of_evaluation(make_trainer):
    trainer = make_trainer("train.skip_last_steps=0", "evaluation.num_steps=5")
    iterate(trainer)
    policies = trainer.snapshot()
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
    stats = iterate(trainer).stats
    assert trainer.take_unet_rows() + stats.unet_rows == sum(rows)
    rows.clear()
    trainer.evaluate(trainer.snapshot(), evaluation_set("selection", ["a"], 6, run_seed=3))
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


# --- sample.noisy_steps --------------------------------------------------------------------------


def draw(rig, batch, schedule):
    return Rollout.join(batch, list(rig.sampler.chunks(rig.agents, batch, schedule=schedule)))


def draw_advantages(num_agents, samples):
    return torch.randn(num_agents, samples, generator=torch.Generator().manual_seed(0))


def test_windows_lie_wherever_all_their_steps_are_trained():
    schedule = make_schedule(sd_scheduler(), 6, 1.0)
    windows = noise_windows(schedule, 1, 3)
    assert [window.trainable_steps for window in windows] == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    for window in windows:
        inside = window.trainable_steps
        assert torch.equal(window.sigma[inside], schedule.sigma[inside])
        assert torch.equal(window.alpha_bar_prev, schedule.alpha_bar_prev)
    assert noise_windows(schedule, 1, 0) == [schedule]


def test_a_window_holds_no_step_without_variance_and_one_that_does_not_fit_is_refused():
    schedule = make_schedule(sd_scheduler(set_alpha_to_one=True), 4, 1.0)  # whose last has none
    windows = noise_windows(schedule, 0, 3)
    assert [window.trainable_steps for window in windows] == [[0, 1, 2]]
    with pytest.raises(UserError, match="more than the 3 denoising steps of this model"):
        noise_windows(schedule, 0, 4)


def test_outside_the_window_a_step_is_bitwise_diffusers_ddim_without_noise():
    rig = make_rig(2)
    rig.perturb()
    window = rig.sampler.schedule.noisy_within(range(1, 3))
    rollout = draw(rig, rig.batch(2, 3), window)
    scheduler, prompts = rig.model.scheduler, rollout.prompts
    scheduler.set_timesteps(4)
    is_noisy = [False, True, True, False]
    for i, t in enumerate(rollout.timesteps):
        x = rollout.latents[:, i]
        with torch.inference_mode():
            out = rig.sampler.guided(rig.agents, x, t.expand(6), prompts.conditioning, 2)
        plain = scheduler.step(out, t, x, eta=0.0).prev_sample
        assert torch.equal(rollout.latents[:, i + 1], plain) is not is_noisy[i]
        assert bool(rollout.log_probs[:, i].isfinite().all()) is is_noisy[i]


@pytest.mark.parametrize("rule", ["ddpo", "diffusion_nft", "awm"])
def test_only_steps_of_the_window_are_trained_from_a_ratio_of_one(rule):
    changes = {"update_rule": rule, "skip_last_steps": 1}
    rig = make_rig(2, sample={"noisy_steps": 2}, train=changes)
    rig.perturb()
    window = noise_windows(rig.sampler.schedule, 1, 2)[1]
    rollout = draw(rig, rig.batch(2, 4), window)
    rows = []
    rig.model.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    stats = rig.updater.update(rig.agents, rollout, draw_advantages(2, 4), [1, 2])
    assert stats.ratio_error.isnan().tolist() == [True, False, False, True]
    assert stats.ratio_error[1:3].max() < 1e-5
    assert stats.excluded_steps == 2
    assert stats.unet_rows == sum(rows) == 2 * 4 * 2 * 2  # guidance, or both policies' passes
    assert len(rows) >= rig.updater.num_passes(4, 2)
    assert rig.agents.snapshot(0).adapter.isfinite().all()


def test_a_window_of_all_steps_is_training_without_a_window():
    adapters = []
    for noisy in (0, 4):
        rig = make_rig(2, sample={"noisy_steps": noisy})
        (schedule,) = noise_windows(rig.sampler.schedule, 0, noisy)
        rollout = draw(rig, rig.batch(2, 4), schedule)
        rig.updater.update(rig.agents, rollout, draw_advantages(2, 4), [1, 2])
        adapters.append(rig.agents.snapshot(1).adapter)
    assert torch.equal(*adapters)


def assert_each_alone_is_the_same(trained):
    """`trained(K, first)` gives the adapters of K agents from the first on: of 3, or of each."""
    together = trained(3)
    for k in range(3):
        (alone,) = trained(1, k)
        assert (together[k] - alone).norm() <= 1e-9 * alone.norm()


def test_agents_with_a_window_together_equal_each_alone():
    def trained(num_agents, first_agent=0):
        rig = make_rig(num_agents, make_tiny_pipe().to(torch.float64), sample={"noisy_steps": 2})
        window = noise_windows(rig.sampler.schedule, 0, 2)[1]
        rollout = draw(rig, rig.batch(num_agents, 4, first_agent), window)
        own = slice(first_agent, first_agent + num_agents)
        rig.updater.update(rig.agents, rollout, draw_advantages(3, 4)[own], [1, 2, 3][own])
        return [rig.agents.snapshot(k).adapter for k in range(num_agents)]

    assert_each_alone_is_the_same(trained)


def test_the_window_is_drawn_anew_for_every_iteration_and_again_the_same(make_trainer, monkeypatch):
    drawn = []

    def collecting(sampler, scorer, agents, prompts, on_step, schedule, trained):
        drawn.append(schedule.trainable_steps)
        return collect(sampler, scorer, agents, prompts, on_step, schedule, trained)

    monkeypatch.setattr(ddpo.trainer, "collect", collecting)
    changes = ("sample.noisy_steps=1", "train.skip_last_steps=1")  # of the recipe's 4 steps
    trainer, same = make_trainer(*changes), make_trainer(*changes)
    for iteration in range(12):
        iterate(trainer, iteration)
    assert {tuple(steps) for steps in drawn} == {(0,), (1,), (2,)}
    iterate(same, 7)
    assert drawn[-1] == drawn[7]


def test_policies_of_a_window_are_judged_with_noise_in_all_steps(make_trainer):
    trainer, plain = make_trainer("sample.noisy_steps=1"), make_trainer()
    on = evaluation_set("selection", ["a", "b"], 4, run_seed=3)
    policy = trainer.agents.initial_policy()
    one, other = trainer.evaluate([policy], on, 4)[0], plain.evaluate([policy], on, 4)[0]
    assert torch.equal(one.images, other.images)


def test_a_plan_counts_the_steps_of_the_window():
    settings = make_settings(sample={"noisy_steps": 3, "guidance_scale": 5.0})
    assert Plan.of(settings, num_train_prompts=45).train_rows_per_image == 2 * 3


# --- train.best_of -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"),
    [(2, [[2, 3], [0, 5]]), (4, [[1, 2, 3, 5], [0, 1, 4, 5]]), (3, [[2, 3, 5], [0, 4, 5]])],
)
def test_the_most_extreme_samples_by_hand(count, expected):
    advantages = torch.tensor([[0.0, -0.5, 3.0, -1.0, 0.1, 2.0], [0.0] * 6])  # and a tie of all
    assert most_extreme(advantages, count).tolist() == expected


def test_all_samples_are_the_most_extreme_of_all():
    assert most_extreme(draw_advantages(2, 5), 5).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_an_update_uses_the_most_extreme_samples_only_and_costs_their_share():
    """The samples in between could be anything: nothing is computed from them."""
    values = torch.tensor([[0.0, 2.0, -0.1, -3.0, 0.1, 0.2, 1.0, -1.0]])
    spoilt = [0, 2, 4, 5]
    adapters, rows = [], []
    for is_spoilt in (False, True):
        rig = make_rig(1, train={"best_of": 0.5})
        rollout = rig.rollout(rig.batch(1, 8))
        if is_spoilt:
            rollout.latents[spoilt] = torch.nan
            rollout.log_probs[spoilt] = torch.nan
        rig.model.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        passes = []
        stats = rig.updater.update(rig.agents, rollout, values, [1], lambda p=passes: p.append(1))
        assert stats.unet_rows == sum(rows) == 4 * 4 * 2
        assert len(passes) == rig.updater.num_passes(8, 1)
        assert stats.skipped.tolist() == [0]
        adapters.append(rig.agents.snapshot(0).adapter)
        rows.clear()
    assert torch.equal(*adapters)


def test_the_best_of_some_is_all_of_those_alone():
    """Half of 8 samples, shuffled as 4 are, is the update on these 4."""
    values = torch.tensor([[0.0, 2.0, -0.1, -3.0, 0.1, 0.2, 1.0, -1.0]])
    picked = [1, 3, 6, 7]
    rig = make_rig(1, train={"best_of": 0.5})
    whole = rig.batch(1, 8)
    rig.updater.update(rig.agents, rig.rollout(whole), values, [1])
    alone = make_rig(1)
    texts, seeds = [whole.texts[i] for i in picked], [whole.seeds[i] for i in picked]
    batch = alone.sampler.prompt_batch(texts, seeds, 1)
    alone.updater.update(alone.agents, alone.rollout(batch), values[:, picked], [1])
    expected = alone.agents.snapshot(0).adapter
    difference = rig.agents.snapshot(0).adapter - expected
    assert difference.norm() <= 1e-4 * expected.norm()  # rounding: other batches while sampling


def test_agents_with_picked_samples_together_equal_each_alone():
    def trained(num_agents, first_agent=0):
        rig = make_rig(num_agents, make_tiny_pipe().to(torch.float64), train={"best_of": 0.5})
        rollout = rig.rollout(rig.batch(num_agents, 8, first_agent))
        own = slice(first_agent, first_agent + num_agents)
        rig.updater.update(rig.agents, rollout, draw_advantages(3, 8)[own], [1, 2, 3][own])
        return [rig.agents.snapshot(k).adapter for k in range(num_agents)]

    assert_each_alone_is_the_same(trained)


def test_a_plan_counts_gradients_of_picked_images_only():
    train = {"best_of": 0.25, "kl_coef": 0.1}
    plan = Plan.of(make_settings(train=train), num_train_prompts=45)
    assert plan.trained_images == plan.train_images / 4
    assert plan.train_rows == plan.trained_images * 8  # of 10 steps, without guidance
    assert plan.sample_rows == plan.images * 10 + plan.trained_images * 8


@pytest.mark.parametrize(
    ("num_agents", "start", "count", "shared"),
    [
        (4, "even_weights", 4, None),
        (4, "even_weights", 8, 4),
        (4, "soup", 4, 2),
        (4, "soup", 2, None),
    ],
)
def test_processes_that_share_an_agent_cannot_pick_among_its_samples(
    num_agents, start, count, shared
):
    evolution = {"num_agents": num_agents, "start": start}
    settings = make_settings(train={"best_of": 0.5}, evolution=evolution)
    problems = list(process_problems(settings.flat(), count))
    assert len(problems) == (shared is not None)
    assert all(f"several share each of {shared} agents" in problem for problem in problems)
    assert not list(process_problems(make_settings(evolution=evolution).flat(), count))


# --- train.step_weighting ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction_type", "by_hand"),
    [("epsilon", 0.816497), ("v_prediction", 0.408248), ("sample", 0.471405)],
)
def test_how_the_mean_depends_on_the_prediction_by_hand(prediction_type, by_hand):
    """abar_t = 1/4, abar_prev = 1/2, sigma^2 = 1/3, so the direction to x_t has sqrt(1/6).

    epsilon: sqrt(1/6) - sqrt(1/2) sqrt(3/4) / sqrt(1/4).
    v_prediction: sqrt(1/6) sqrt(1/4) - sqrt(1/2) sqrt(3/4).
    sample: sqrt(1/2) - sqrt(1/6) sqrt(1/4) / sqrt(3/4).
    """
    values = torch.tensor([[0.25], [0.5], [3**-0.5]]).unbind()
    assert output_coefficient(*values, prediction_type).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_with_weights_the_same_noise_moves_the_prediction_alike_at_every_step(prediction_type, eta):
    schedule = make_schedule(sd_scheduler(prediction_type=prediction_type), 10, eta)
    weights = step_weights(schedule, 0, "sensitivity")
    assert weights.mean().item() == pytest.approx(1)
    gradients = []
    for i in range(10):
        output = torch.randn(1, 4, 2, 2).requires_grad_()
        sigma, coefficients = schedule.sigma[i], (schedule.alpha_bar[i], schedule.alpha_bar_prev[i])
        mean = step_mean(output, torch.randn(1, 4, 2, 2), *coefficients, sigma, prediction_type)
        action = mean.detach() + sigma * torch.ones(1, 4, 2, 2)
        (weights[i] * gaussian_log_prob(action, mean, sigma).sum()).backward()
        gradients.append(output.grad.abs())
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=2e-3, atol=0)


def test_the_last_but_one_of_ten_steps_is_the_sensitive_one():
    schedule = make_schedule(sd_scheduler(), 10, 1.0)
    weights = step_weights(schedule, 0, "sensitivity")
    assert weights.argmin() == 8
    assert weights[[0, 9]].min() > 6 * weights[8]
    assert step_weights(schedule, 0, "equal").tolist() == [1] * 10
    skipped = step_weights(schedule, 2, "sensitivity")
    assert skipped[8:].tolist() == [0, 0]
    assert skipped[:8].mean().item() == pytest.approx(1)


def test_the_loss_of_a_step_is_multiplied_by_its_weight():
    for place in range(4):
        norms = []
        for weighting in ("equal", "sensitivity"):
            train = {"step_weighting": weighting, "updates_per_epoch": 1, "kl_coef": 0.1}
            rig = make_rig(1, sample={"noisy_steps": 1}, train=train)
            rig.perturb()
            window = noise_windows(rig.sampler.schedule, 0, 1)[place]
            rollout = draw(rig, rig.batch(1, 4), window)
            norms.append(rig.updater.update(rig.agents, rollout, draw_advantages(1, 4), [1]))
        weight = step_weights(rig.sampler.schedule, 0, "sensitivity")[place].item()
        ratio = (norms[1].grad_norm / norms[0].grad_norm).item()
        assert ratio == pytest.approx(weight, rel=1e-4)
        assert norms[1].ratio_error.nan_to_num(0).max() < 1e-5


@pytest.mark.parametrize("rule", ["diffusion_nft", "awm"])
def test_rules_that_noise_the_picture_again_have_no_sensitivity(rule):
    with pytest.raises(ConfigError, match=f"no meaning for train.update_rule={rule}"):
        make_settings(train={"step_weighting": "sensitivity", "update_rule": rule})


# --- the program ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="finished")
def _finished(words):
    """A whole run with all these settings, and the rows its UNet was given."""
    changes = (
        "sample.noisy_steps=1",
        "train.best_of=0.5",
        "train.step_weighting=sensitivity",
        "train.skip_last_steps=0",
        "evaluation.num_steps=3",
        "evaluation.report_images=8",
    )
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
