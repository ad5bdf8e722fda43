"""From clicks to a front: simulated people, whose hidden taste is known, on the embedded model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mo_train
from ddpo.rewards.clip import load_clip
from ddpo.rewards.taste import embed, learn
from front.front import Front
from front.taste.open import open_quiz
from front.taste.source import Source
from run.command_line import read_settings
from tools.simulated_people import ada, grace

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
PEOPLE = {"ada": ada, "grace": grace}


def emoji_quiz(out):
    return open_quiz(out, lambda: Source.open("emoji-sd", device="cpu"), device="cpu")


@pytest.fixture(scope="module", name="likes")
def _likes(tmp_path_factory):
    """A folder with 100 answers of each person."""
    folder = tmp_path_factory.mktemp("people")
    for name, person in PEOPLE.items():
        person(CPU).answer(emoji_quiz(folder / f"{name}_likes"), 100)
    return folder


def train(folder, names, *settings):
    """A short run towards some rewards."""
    arguments = [
        f"logdir={folder}",
        f"run_name={len(list(folder.iterdir()))}",
        f"rewards.names={','.join(names)}",
        "pretrained.model=emoji-sd",  # whose pictures the people have seen
        "rewards.sources=clip_alignment.clip=emoji-clip",
        "train.learning_rate=1.2e-2",
        "evolution.iterations_per_generation=4",
        "evolution.num_agents=3",
        "evolution.evolutionary_generations=2",
        "evaluation.num_steps=4",
        "evaluation.selection_images=32",
        "evaluation.report_images=64",
        *settings,
    ]
    settings = read_settings([f"--config.{argument}" for argument in arguments])
    mo_train.main(settings)
    return Front.load(folder / settings.run_name)


def test_more_clicks_predict_better(tmp_path):
    """On pairs of new pictures that the person would choose between."""
    person, quiz = ada(CPU), emoji_quiz(tmp_path / "ada")
    fresh = Source.open("emoji-sd", device="cpu").draw(np.random.default_rng(9), 45, 4)
    clip = load_clip("emoji-clip", CPU, "float32")
    embeds = embed(clip, [each.picture for each in fresh])
    differences = embeds[::2] - embeds[1::2]
    accuracies = []
    for more in (30, 70, 200):
        person.answer(quiz, more)
        fitted = learn(quiz.answers, quiz.embeds).fit
        same = (differences @ fitted.weights > 0) == (differences @ person.direction > 0)
        accuracies.append(same.mean())
    print("accuracy after 30, 100 and 300 clicks:", accuracies)  # noqa: T201 - for the docs
    assert accuracies[0] > 0.55
    assert accuracies[1] > 0.65
    assert accuracies[2] > max(0.75, accuracies[0])


def test_training_towards_the_learnt_taste_raises_the_hidden_one(likes, tmp_path):
    hidden = "tools/simulated_people.py:ada"
    front = train(
        tmp_path,
        (f"taste:{likes / 'ada_likes'}", "clip_alignment"),
        f"guards.names={hidden},taste:{likes / 'ada_likes'}#certainty",
    )
    best = max(front.policies, key=lambda policy: policy.report_returns[0])
    assert best.guards["ada"].drop < -3 * best.guards["ada"].std_error
    assert best.guards["ada_likes_certainty"].value < 0


def test_two_people_are_at_the_ends_of_a_front_between_them(likes, tmp_path):
    front = train(tmp_path, tuple(f"taste:{likes / name}_likes" for name in PEOPLE))
    assert front.names == ("ada_likes", "grace_likes")
    first, last = front.policies[0], front.policies[-1]
    assert first.id != last.id
    for end, index in ((last, 0), (first, 1)):
        gain = end.report_returns[index] - front.base.report_returns[index]
        assert gain > 2 * end.report_std_error[index]
        assert end.report_returns[index] == max(p.report_returns[index] for p in front.policies)
