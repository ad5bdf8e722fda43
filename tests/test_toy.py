"""The toy of the benchmarks: what it is, and that the methods learn on it within seconds."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch

from benchmarks import side_by_side
from benchmarks.evidence import Record
from benchmarks.toy import jobs, rewards
from benchmarks.toy.arms import ARMS, BASELINE, HERE, PAIRS, RUNNABLE, SEEDS, words
from benchmarks.toy.jobs import Job, do_all
from benchmarks.toy.model import DIMENSIONS, ToyDiffusion, angle, points
from benchmarks.toy.rewards import Bell, Near
from benchmarks.toy.run import play
from benchmarks.toy.sweep import Sweep
from benchmarks.toy.tables import print_all
from config.settings.errors import UserError
from ddpo.advantages import within_prompt_std
from ddpo.agents.slots import Agents
from ddpo.cost.plan import Plan
from ddpo.sampler import Sampler
from run.command_line import read_settings

HOURS, HALF_HOURS = ((HERE / name).read_text().split() for name in ("hours.txt", "half_hours.txt"))
REWARDS = {
    name: getattr(rewards, name)
    for name in ("near_fine", "near_coarse", "bell_fine", "bell_coarse")
}


@cache
def settings_of(arm, pair="conflict"):
    return read_settings(words(pair, arm, 0, 8e-3, {}))


def broken_off(seed):
    """A run's record; the run of seed 0 diverges."""
    if seed == 0:
        raise UserError("images lack a finite score")
    return Record.read(HERE / "results" / "conflict" / "skip" / f"{seed}.json")


def as_images(vectors):
    return vectors.view(-1, 1, DIMENSIONS, 1).expand(-1, 3, -1, -1)


def draw(prompts):
    """Vectors of the base model, as pictures."""
    settings, model = settings_of(BASELINE), ToyDiffusion.trained()
    agents = Agents(model.unet, 1, settings.adapter, settings.train)
    sampler = Sampler(model, settings.sample)
    batch = sampler.prompt_batch(prompts, range(len(prompts)), 1)
    return torch.cat([chunk.images for chunk in sampler.chunks(agents, batch)])


@pytest.mark.parametrize(("prompt", "turns"), [("12:00", 1.0), ("3:00", 0.25), ("4:30", 0.375)])
def test_a_prompt_is_an_angle(prompt, turns):
    assert angle(prompt) == pytest.approx(2 * math.pi * turns)


@pytest.mark.parametrize("prompts", [HOURS, HALF_HOURS], ids=["hours", "half hours"])
def test_the_base_model_draws_around_the_point_of_its_prompt(prompts):
    texts = [text for text in prompts for _ in range(40)]
    vectors = draw(texts)[:, 0, :, 0].unflatten(0, (len(prompts), -1))
    expected = torch.zeros(len(prompts), DIMENSIONS)
    expected[:, :2] = points(prompts)
    assert (vectors.mean(dim=1) - expected).abs().max() < 0.3  # 5 standard errors
    assert vectors.std(dim=1).mean() == pytest.approx(0.37, abs=0.03)


def test_every_run_has_a_denoiser_of_its_own_with_the_same_weights():
    first, second = ToyDiffusion.trained().unet, ToyDiffusion.trained().unet
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    first.layers[0].weight.data.zero_()
    assert second.layers[0].weight.any()


@pytest.mark.parametrize("name", REWARDS)
def test_scores_under_the_base_model_have_the_declared_mean_and_spread(name):
    texts = [text for text in HOURS for _ in range(100)]
    scores = REWARDS[name](draw(texts), texts)
    reward = REWARDS[name]
    assert scores.mean().item() == pytest.approx(reward.base, abs=0.1 * reward.spread)
    assert within_prompt_std(scores[:, None], texts).item() == pytest.approx(reward.spread, rel=0.1)


@pytest.mark.parametrize("shape", [Near(), Bell()])
@pytest.mark.parametrize("distance", [0.0, 2.0])
def test_moments_of_a_shape_are_those_of_gaussian_draws(shape, distance):
    noise = 0.37 * torch.randn(200_000, 4, generator=torch.Generator().manual_seed(0))
    noise[:, 0] += distance
    scores = shape.value(noise.square().sum(dim=1))
    assert scores.mean().item() == pytest.approx(shape.mean(distance), rel=0.02)
    assert scores.std().item() == pytest.approx(shape.std(distance), rel=0.02)


def test_a_score_is_largest_at_its_own_target_which_turns_with_the_prompt():
    target = torch.zeros(1, DIMENSIONS)
    target[0, 3] = 2.0  # a quarter past twelve hours: (0, 1), twice
    for name in ("near_fine", "bell_fine"):
        best = REWARDS[name](as_images(target), ["3:00"])
        assert best > REWARDS[name](as_images(1.1 * target), ["3:00"])
        assert best > REWARDS[name](as_images(0.9 * target), ["3:00"])
        assert best > REWARDS[name](as_images(target), ["4:00"])


@pytest.mark.parametrize(("pair", "bulges"), [("near", True), ("bell", False)])
def test_one_front_bulges_outwards_and_the_other_is_hollow(pair, bulges):
    """Halfway between the targets against the mean of what the two targets score."""
    ends = torch.zeros(2, DIMENSIONS)
    ends[0, 3] = ends[1, 5] = 2.0
    for name in (f"{pair}_fine", f"{pair}_coarse"):
        score = REWARDS[name]
        at_ends = score(as_images(ends), ["3:00"] * 2).mean()
        halfway = score(as_images(ends.mean(dim=0, keepdim=True)), ["3:00"])[0]
        assert bool(halfway > at_ends) is bulges


@pytest.mark.parametrize("arm", RUNNABLE)
def test_no_arm_may_score_more_images_than_the_baseline(arm):
    def images(name):
        plan = Plan.of(settings_of(name), len(HOURS), num_trained_steps=1)
        return plan.train_images + plan.calibration_images + plan.selection_images

    assert images(arm) <= images(BASELINE)
    if settings_of(arm).train.update_rule != "reward_gradient":  # which needs far fewer
        assert images(arm) > 0.9 * images(BASELINE)


def test_it_learns_from_its_recommended_start():
    """The hypervolume on prompts never trained on is over half of a whole run's."""
    short = {"evolution.evolutionary_generations": "3"}
    volumes = play("conflict", "skip_soup", 0, 8e-3, short).hypervolumes()
    assert volumes[0] < 0.12
    assert volumes[-1] > 0.22


@pytest.mark.slow
def test_a_worker_learns_and_hands_back_what_each_generation_was_worth():
    """A whole run of DDPO, in a process of its own as the command has it."""
    job, kept = Job(pair="conflict", arm="skip", seed=0, learning_rate=4e-3), {}
    do_all([job], 1, kept.__setitem__)
    volumes = kept[job].hypervolumes()
    assert volumes[0] < 0.12
    assert volumes[-1] > 0.25
    assert kept[job].points[-1].images == 16_500


def test_a_run_that_breaks_off_is_handed_back_as_none_and_stops_no_other(monkeypatch):
    monkeypatch.setattr(side_by_side, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.setattr(jobs, "do", lambda job: broken_off(job.seed))
    kept = {}
    done = [Job(pair="conflict", arm="skip", seed=seed, learning_rate=1.0) for seed in (0, 1)]
    do_all(done, 1, lambda job, record: kept.update({job.seed: record}))
    assert kept[0] is None
    assert kept[1].seed == 1


def test_the_best_learning_rate_of_a_sweep_is_that_of_the_largest_mean(tmp_path):
    sweep = Sweep(tmp_path / "sweep.json")
    for rate, seed, value in ((1e-3, 0, 0.5), (1e-3, 1, 0.1), (2e-3, 0, 0.4), (2e-3, 1, 0.4)):
        sweep.keep("conflict", "raw", rate, seed, value)
    again = Sweep(tmp_path / "sweep.json")
    assert again.best("conflict", "raw") == 2e-3
    assert again.has("conflict", "raw", 2e-3, 1)
    assert not again.has("conflict", "raw", 4e-3, 1)
    with pytest.raises(ValueError, match="has no sweep"):
        again.best("partial", "raw")


def test_the_recorded_runs_are_complete_and_make_the_tables(capsys):
    print_all(Sweep(HERE / "sweep.json"), HERE / "results")
    out = capsys.readouterr().out
    headline = json.loads(out.splitlines()[-1])
    assert set(headline) == set(PAIRS)
    assert all(set(arms) == set(ARMS) for arms in headline.values())
    assert out.count(f"over {len(SEEDS)} paired seeds") == len(PAIRS)
