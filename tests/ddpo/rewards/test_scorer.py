"""Scoring off the main thread, and rewards that misbehave."""

from __future__ import annotations

import threading

import pytest
import torch
from PIL import Image

from ddpo.collect import collect
from ddpo.rewards.jpeg_compressibility import JpegSize
from ddpo.rewards.scorer import RewardError, Scorer
from tests.support.pipelines import of_8_bits
from tests.support.rewards import brightness, flawed
from tests.support.rig import make_rig


def failing(images, prompts):
    raise KeyError("no such model")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda images, _: images.mean(), r"'r': expected a tensor \(2,\), got \(\)"),
        (lambda images, _: [0.0] * len(images), "got list"),
        (lambda images, _: torch.full((len(images), 1), 0.5), r"got \(2, 1\)"),
        (lambda images, _: torch.ones(len(images), dtype=torch.bool), "real numbers, got torch.bo"),
        (failing, "'r' failed on 2 images: KeyError"),
    ],
)
def test_a_bad_reward_is_named(reward, message):
    rig = make_rig(1)
    with pytest.raises(RewardError, match=message):
        collect(rig.sampler, Scorer({"r": reward}), rig.agents, rig.batch(1, 2))
    with pytest.raises(RewardError, match=message):
        Scorer({"r": reward}).check(16, 16, ["a", "b"])


@pytest.fixture(name="hanging")
def _hanging():
    """A reward whose first call hangs until the test is over."""
    is_over, calls = threading.Event(), []

    def reward(images, prompts):
        calls.append(len(images))
        if len(calls) == 1:
            is_over.wait(30)
        return brightness(images, prompts)

    yield reward
    is_over.set()


def test_a_hanging_reward_ends_the_run_without_being_waited_for(hanging):
    scorer = Scorer({"slow": hanging}, timeout_seconds=0.05)
    submitted = scorer.submit(torch.rand(2, 3, 4, 4), ["a", "b"])
    with pytest.raises(RewardError, match=r"'slow' hangs: .* rewards\.timeout_seconds=0\.05"):
        scorer.gather([submitted], 1)
    scorer.close()


def test_a_hanging_call_is_skipped_and_a_new_thread_takes_over(hanging, caplog):
    scorer = Scorer(
        {"slow": hanging, "bright": brightness},
        batch_size=2,
        timeout_seconds=0.2,
        on_error="skip",
    )
    images = of_8_bits(torch.rand(4, 3, 4, 4))
    rewards = scorer.gather([scorer.submit(images, ["a"] * 4)], 1)
    assert rewards.is_valid.tolist() == [[False, False, True, True]]
    torch.testing.assert_close(rewards.values[0, 2:, 0], brightness(images[2:], ()))
    torch.testing.assert_close(rewards.values[0, :, 1], brightness(images, ()))
    assert rewards.metrics()["reward/slow/invalid"] == 2
    assert "2 images are left out" in caplog.text


def test_a_reward_that_works_in_place_does_not_change_the_scores_of_the_others():
    is_spoiled = threading.Event()

    def spoils(images, prompts):
        images *= 255
        is_spoiled.set()
        return brightness(images, prompts)

    def comes_later(images, prompts):
        assert is_spoiled.wait(30)
        return brightness(images, prompts)

    scorer = Scorer({"spoils": spoils, "bright": comes_later})
    values = scorer.gather([scorer.submit(torch.rand(2, 3, 4, 4), ["a"] * 2)], 1).values
    torch.testing.assert_close(values[..., 0], 255 * values[..., 1])


def test_scores_that_are_not_finite_are_masked_and_counted():
    scorer = Scorer({"flawed": flawed, "bright": brightness}, max_invalid_fraction=0.25)
    rewards = scorer.gather([scorer.submit(torch.rand(8, 3, 4, 4), ["a"] * 8)], 2)
    scorer.refuse_too_many_missing(rewards.values)
    assert rewards.values[..., 0].isnan().tolist() == [[True] + [False] * 3, [False] * 3 + [True]]
    assert rewards.values[..., 1].isfinite().all()
    metrics = rewards.metrics()
    assert metrics["reward/flawed/invalid"] == 2
    assert metrics["reward/bright/invalid"] == 0
    assert metrics["reward/flawed/mean"] == pytest.approx(rewards.values[..., 0].nanmean().item())
    assert metrics["cost/reward_seconds_per_image/flawed"] > 0


def test_too_many_missing_scores_end_the_run():
    scorer = Scorer({"flawed": flawed, "bright": brightness}, max_invalid_fraction=0.24)
    rewards = scorer.gather([scorer.submit(torch.rand(8, 3, 4, 4), ["a"] * 8)], 2)
    with pytest.raises(RewardError, match=r"2 of 8 images lack .* \(flawed 2, bright 0\)"):
        scorer.refuse_too_many_missing(rewards.values)


def test_a_picture_that_is_not_finite_gets_no_score():
    images = torch.rand(4, 3, 4, 4)
    images[1, 0, 0, 0] = torch.nan
    scorer = Scorer({"bright": brightness})
    rewards = scorer.gather([scorer.submit(images, ["a"] * 4)], 1)
    assert rewards.is_valid.tolist() == [[True, False, True, True]]


def test_a_reward_that_raises_is_skipped_until_too_much_is_missing(caplog):
    images = torch.rand(4, 3, 4, 4)

    def fails_once(images, prompts):
        if prompts[0] == "bad":
            raise ConnectionError("judge is away")
        return brightness(images, prompts)

    scorer = Scorer({"r": fails_once}, batch_size=1, on_error="skip", max_invalid_fraction=0.3)
    rewards = scorer.gather([scorer.submit(images, ["a", "bad", "b", "c"])], 1)
    assert rewards.is_valid.tolist() == [[True, False, True, True]]
    assert "judge is away" in caplog.text
    rewards = scorer.gather([scorer.submit(images, ["a", "bad", "bad", "c"])], 1)
    with pytest.raises(RewardError, match="2 of 4 images lack a finite score"):
        scorer.refuse_too_many_missing(rewards.values)


def test_a_reward_that_exits_does_not_take_the_program_along():
    def leaves(images, prompts):
        raise SystemExit(3)

    with pytest.raises(RewardError, match=r"SystemExit\(3\)"):
        Scorer({"r": leaves}).check(4, 4, ["a", "b"])


def test_scores_do_not_depend_on_the_size_of_a_call():
    images, seen = torch.rand(7, 3, 4, 4), []

    def reward(batch, prompts):
        seen.append((len(batch), list(prompts)))
        return brightness(batch, prompts)

    whole, parts = Scorer({"r": reward}), Scorer({"r": reward}, batch_size=3)
    values = [s.gather([s.submit(images, list("abcdefg"))], 1).values for s in (whole, parts)]
    assert torch.equal(values[0], values[1])
    assert seen[1:] == [(3, list("abc")), (3, list("def")), (1, ["g"])]


def test_images_are_converted_once_for_all_rewards(monkeypatch):
    encoded = []
    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda *a, **k: (encoded.append(1), save(*a, **k)))
    scorer = Scorer({"small": JpegSize(-1), "large": JpegSize(1)})
    values = scorer.gather([scorer.submit(torch.rand(5, 3, 8, 8), ["a"] * 5)], 1).values
    assert torch.equal(values[..., 0], -values[..., 1])
    assert len(encoded) == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_rewards_run_on_a_stream_of_their_own():
    streams = []

    def reward(images, prompts):
        streams.append(torch.cuda.current_stream())
        return brightness(images, prompts)

    scorer = Scorer({"r": reward})
    images = torch.rand(4, 3, 64, 64, device="cuda")
    values = scorer.gather([scorer.submit(images, ["a"] * 4)], 1).values
    assert streams[0] != torch.cuda.default_stream()
    torch.testing.assert_close(values[0, :, 0], brightness(images, ()).cpu(), rtol=0, atol=0.01)
