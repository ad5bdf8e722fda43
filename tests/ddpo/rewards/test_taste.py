"""A taste as a reward: learnt from answers on disk, refused while it is no better than chance."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from config.settings.errors import ConfigError, UserError
from ddpo.rewards import may_be_black_box
from ddpo.rewards.answers import NEITHER, Answers
from ddpo.rewards.clip import load_clip
from ddpo.rewards.gradients import RewardGradients
from ddpo.rewards.lookup import build_reward
from ddpo.rewards.scorer import RewardError, Scorer
from ddpo.rewards.taste import embed
from run.command_line import read_settings
from tests.support.clip import make_clip
from tests.support.rig import make_settings
from tests.support.tastes import ask, colourful, hidden_taste

CPU = torch.device("cpu")
HIDDEN = hidden_taste(5)


@pytest.fixture(scope="module", name="ada")
def _ada(tmp_path_factory):
    """80 answers of somebody with a taste."""
    return ask(tmp_path_factory.mktemp("people") / "ada", lambda embeds: embeds @ HIDDEN, 80)


@pytest.fixture(scope="module", name="reward")
def _reward(ada):
    return build(f"taste:{ada}")


@pytest.fixture(name="copy")
def _copy(ada, tmp_path):
    return shutil.copytree(ada, tmp_path / "ada")


def rewrite(folder, change):
    """Change the list of answers in `taste.json`."""
    data = json.loads((folder / "taste.json").read_text())
    data["answers"] = change(data["answers"])
    (folder / "taste.json").write_text(json.dumps(data))
    return folder


def build(name):
    return build_reward(name, make_settings().rewards, CPU)[0]


def tensors(pictures):
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module", name="fresh")
def _fresh():
    """Pictures that nobody was asked about, and how much the person likes them."""
    pictures = colourful(200, seed=1)
    clip = load_clip("emoji-clip", CPU, "float32")
    return tensors(pictures), torch.from_numpy(embed(clip, pictures) @ HIDDEN).float()


def test_the_reward_ranks_new_pictures_as_the_person_does(reward, fresh):
    images, likes = fresh
    scores = reward(images, ["cat"] * 200)
    pairs = torch.randperm(200, generator=torch.Generator().manual_seed(0)).view(2, 100)
    same = (scores[pairs[0]] > scores[pairs[1]]) == (likes[pairs[0]] > likes[pairs[1]])
    assert same.float().mean() > 0.8


def test_flipped_clicks_flip_the_direction(reward, copy, fresh):
    swap = {"left": "right", "right": "left"}
    rewrite(copy, lambda answers: [{**a, "choice": swap[a["choice"]]} for a in answers])
    scores, flipped = reward(fresh[0], []), build(f"taste:{copy}")(fresh[0], [])
    torch.testing.assert_close(flipped, -scores, atol=1e-3, rtol=1e-3)
    assert scores.std() > 0.5


def test_the_gradient_is_that_of_the_score(ada, reward, fresh):
    images = fresh[0][:2].clamp(0.1, 0.9)
    assert not may_be_black_box(f"taste:{ada}", make_settings().rewards)
    gradient, values = RewardGradients({"ada": reward.score}).ascent(
        images, ["cat"] * 2, torch.ones(2, 1)
    )
    torch.testing.assert_close(values, reward(images, []), atol=1e-4, rtol=1e-4)
    change = 0.02 * gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
    gain = reward(images + change, []) - reward(images - change, [])
    expected = 2 * (gradient * change).sum(dim=(1, 2, 3))
    torch.testing.assert_close(gain, expected, rtol=0.2, atol=1e-2)


def test_certainty_is_less_for_pictures_unlike_those_seen(ada):
    reward = build(f"taste:{ada}#certainty")
    seen = tensors(colourful(40))
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * torch.ones(2, 3, 1, 1)
    assert (reward(seen, []) < 0).all()
    assert reward(checks, []).mean() < reward(seen, []).mean() - reward(seen, []).std()


def test_random_clicks_are_refused(copy):
    coins = np.random.default_rng(1).integers(0, 2, 80)
    choices = ["left" if coin else "right" for coin in coins]
    rewrite(copy, lambda answers: [{**a, "choice": c} for a, c in zip(answers, choices)])  # noqa: B905
    with pytest.raises(
        UserError, match=r"not better than chance yet: it predicts \d+% of 80 choices"
    ):
        build(f"taste:{copy}")
    settings = make_settings(rewards={"names": (f"taste:{copy}", "brightness")}).rewards
    with pytest.raises(RewardError, match="cannot be loaded: the taste is not better than chance"):
        Scorer.build(settings, CPU)


def test_any_clip_and_several_people_are_objectives(tmp_path, ada):
    make_clip(tmp_path / "clip")
    weights = hidden_taste(1, 8)
    grace = ask(tmp_path / "grace", lambda e: e @ weights, 80, clip=str(tmp_path / "clip"))
    settings = read_settings(
        [
            f"--config.rewards.names=taste:{ada}/,taste:{grace},clip_alignment",
            f"--config.guards.names=taste:{ada}#certainty",
            "--config.rewards.sources=clip_alignment.clip=emoji-clip",  # as ada's
        ]
    )
    assert settings.rewards.objectives == ("ada", "grace", "clip_alignment")
    scorer = Scorer.build(settings.rewards, CPU)
    assert scorer.units["grace"] == "logit"
    assert scorer.rewards["ada"].clip is scorer.rewards["clip_alignment"].clip
    batch = scorer.submit(torch.rand(2, 3, 16, 16), ["cat", "dog"])
    assert scorer.gather([batch], 1).values.isfinite().all()
    scorer.close()


def test_neither_is_no_choice(copy):
    rewrite(copy, lambda answers: [*answers, {**answers[0], "choice": NEITHER}])
    assert Answers.read(copy).num_choices == 80


def test_answers_that_share_a_picture_are_one_group(copy):
    rewrite(
        copy, lambda a: [a[0], {**a[1], "left": a[0]["right"]}, {**a[2], "right": a[1]["right"]}]
    )
    assert Answers.read(copy).groups == [0, 0, 0]
    rewrite(
        copy,
        lambda a: [
            *a,
            {
                **a[0],
                "left": {**a[0]["left"], "file": "other.png"},
                "right": {**a[0]["right"], "file": "another.png"},
            },
        ],
    )
    assert Answers.read(copy).groups == [0, 0, 0, 1]


def test_the_home_directory_may_be_written_as_a_tilde(copy, monkeypatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    settings = read_settings(["--config.rewards.names=taste:~/ada,brightness"])
    assert settings.rewards.names == (f"taste:{copy}", "brightness")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-40], "taste.json is damaged"),
        (lambda text: text.replace('"format": 1', '"format": 9'), "format 9 is not 1"),
        (lambda text: text.replace('"choice": "left"', '"choice": "up"'), "choice='up' must be"),
        (lambda text: text.replace("0001.png", "../x.png"), "must be a plain name"),
        (lambda text: text.replace('"seed"', '"sed"'), "sed"),
        (lambda _: '{"format": 1, "clip": "emoji-clip", "answers": []}', "has no choices yet"),
    ],
)
def test_a_damaged_file_is_a_wrong_setting(copy, damage, message):
    file = copy / "taste.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(ConfigError) as error:
        read_settings([f"--config.rewards.names=taste:{copy},brightness"])
    assert message in str(error.value)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("taste:nowhere", "mo_front.py taste RUN_OR_MODEL --out nowhere makes one"),
        ("taste:", "must name a folder by its own name"),
        ("taste:..", "must name a folder by its own name"),
        ("taste:{ada}#doubt", "must be taste:FOLDER, or taste:FOLDER#certainty"),
        ("taste", "taste:... and classifier:... are kinds of rewards"),
    ],
)
def test_a_name_that_leads_nowhere_is_a_wrong_setting(ada, name, message):
    with pytest.raises(ConfigError) as error:
        read_settings([f"--config.rewards.names={name.format(ada=ada)},brightness"])
    assert message in str(error.value)
    assert len(error.value.problems) == 1


def test_a_picture_that_is_gone_is_named(copy):
    (copy / "pictures" / "0003.png").unlink()
    with pytest.raises(UserError, match=r"0003\.png cannot be read"):
        build(f"taste:{copy}")
