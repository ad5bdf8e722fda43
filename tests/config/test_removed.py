"""Removed settings: the messages for recipes, command lines and earlier runs that have them."""

from __future__ import annotations

import json

import pytest
from ml_collections import ConfigDict

from config.base import Settings
from config.settings.declared import defaults_of
from config.settings.errors import ConfigError
from config.settings.flat import flatten, nested
from config.settings.parse import parse
from config.settings.removed import REMOVED
from config.settings.resume import changed_settings, completed
from run.command_line import read_settings

OTHER = {  # value -> one of the same type that is not the default
    bool: lambda was: not was,
    int: lambda was: was + 1,
    float: lambda was: was / 2,
    str: lambda was: f"{was}x",
    tuple: lambda was: (*was, 1),
    list: lambda was: [*was, 1],
}


DEFAULTS = defaults_of(Settings)


def other_than(name):
    return OTHER[type(REMOVED[name].was)](REMOVED[name].was)


def run_with(*changes, **values):
    """The content of an earlier run's `config.json`: today's defaults and these settings."""
    flat = dict(flatten(read_settings(changes).to_json()))
    return json.loads(json.dumps(nested({**flat, **values})))


def test_no_setting_is_both_there_and_gone():
    assert not REMOVED.keys() & defaults_of(Settings).keys()


@pytest.mark.parametrize("name", REMOVED)
def test_the_command_line_is_told_what_to_do_instead(name):
    with pytest.raises(ConfigError) as error:
        read_settings([f"--config.{name}={REMOVED[name].was}"])
    assert error.value.problems == [REMOVED[name].advice(name)]
    assert f"{name} is not a setting any more: {REMOVED[name].instead}" in str(error.value)
    assert f"{REMOVED[name].last} is the last version" in str(error.value)


@pytest.mark.parametrize("name", REMOVED)
def test_a_recipe_gets_the_same_message(name, tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from config import base\n\ndef get_config():\n    config = base.get_config()\n"
        f"    config.{name} = {REMOVED[name].was!r}\n    return config\n"
    )
    with pytest.raises(ConfigError) as error:
        read_settings([f"--config={recipe}"])
    assert REMOVED[name].advice(name) in str(error.value)


@pytest.mark.parametrize("name", REMOVED)
def test_a_run_at_the_value_that_stayed_is_continued_without_a_word(name, tmp_path):
    before = run_with(**{name: REMOVED[name].was})
    assert changed_settings(before, read_settings([])) == []
    (tmp_path / "config.json").write_text(json.dumps({"settings": before}))
    resume = f"--config.resume_from={tmp_path}"
    assert read_settings([resume]).to_json() == {
        **read_settings([]).to_json(),
        "resume_from": str(tmp_path),
    }


@pytest.mark.parametrize("name", [name for name, each in REMOVED.items() if each.is_harmless])
def test_what_changed_no_result_does_not_stop_a_run(name):
    value = other_than(name)
    changes = changed_settings(run_with(**{name: value}), read_settings([]))
    assert changes == [f"{name} was {value!r} and is not a setting any more"]


READ = {"True": True, "False": False, "30": 30.0, "60": 60.0, "900": 900.0}
MOVED = {  # settings of an earlier run -> today's settings that stand for them
    ("rewards.clip_model=mine",): {"rewards.sources": ("clip_alignment.clip=mine",)},
    ("guards.clip_model=mine", "rewards.aesthetic_head=x.pth"): {
        "rewards.sources": (
            "base_similarity.clip=mine",
            "diversity.clip=mine",
            "aesthetic_score.head=x.pth",
        )
    },
    ("pretrained.fuse=True",): {"speed": "fused"},
    ("pretrained.fuse=False",): {"speed": "layers"},
    ("pretrained.tf32=True",): {"pretrained.dtype": "tf32"},
    ("pretrained.dtype=bfloat16", "pretrained.tf32=True"): {"pretrained.dtype": "bfloat16"},
    ("pretrained.model=owner/name", "pretrained.revision=v1"): {
        "pretrained.model": "owner/name@v1"
    },
    (
        "pretrained.model=x.safetensors",
        "pretrained.single_file_config=owner/name",
        "pretrained.revision=v1",
    ): {
        "pretrained.model": "x.safetensors",
        "pretrained.single_file_config": "owner/name@v1",
    },
    ("processes.timeout_seconds=900",): {"rewards.timeout_seconds": 900},
    ("rewards.timeout_seconds=30", "processes.timeout_seconds=60"): {"rewards.timeout_seconds": 30},
    ("train.update_rule=awm", "train.nft_strength=0.3"): {},
    ("train.recompute_log_probs=never",): {},
    ("pretrained.dtype=bfloat16", "train.recompute_log_probs=always"): {},
    (
        "pretrained.lora=owner/lora",
        "pretrained.lora_file=style.safetensors",
        "pretrained.lora_revision=v2",
    ): {"pretrained.lora": "owner/lora/style.safetensors@v2"},
}


@pytest.mark.parametrize("given", MOVED)
def test_a_run_whose_setting_has_an_equal_today_is_continued_with_it(given, tmp_path):
    values = dict(text.split("=") for text in given)
    before = run_with(**{name: READ.get(value, value) for name, value in values.items()})
    before["rewards"]["sources"] = []  # as such runs, which had none
    for is_finished in (True, False):
        now = dict(flatten(completed(before, is_finished=is_finished)))
        assert {name: now[name] for name in MOVED[given]} == MOVED[given]
    (tmp_path / "config.json").write_text(json.dumps({"settings": before}))
    resumed = read_settings([f"--config.resume_from={tmp_path}"])
    assert changed_settings(before, resumed) == []


@pytest.mark.parametrize(
    "values",
    [
        {"pretrained.model": "x.safetensors", "pretrained.revision": "v1"},  # its model is a guess
        {"train.update_rule": "diffusion_nft", "train.nft_strength": 0.3},
        {"pretrained.dtype": "bfloat16", "train.recompute_log_probs": "never"},
        {"train.recompute_log_probs": "always"},
    ],
)
def test_what_has_an_equal_only_sometimes_is_refused_at_other_times(values):
    *_, (name, value) = values.items()
    with pytest.raises(ConfigError, match=f"{name} was {value!r} in this run"):
        completed(run_with(**values))


REFUSED = [
    name
    for name, each in REMOVED.items()
    if each.today(other_than(name), DEFAULTS, is_finished=False) is None
]


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_with_another_value_is_refused_with_the_last_version_that_has_it(name, tmp_path):
    before = run_with(**{name: other_than(name)})
    (tmp_path / "config.json").write_text(json.dumps({"settings": before}))
    force = [f"--config.resume_from={tmp_path}"]
    for refuse in (
        lambda: changed_settings(before, read_settings([])),
        lambda: read_settings(force),
        lambda: completed(before),
    ):
        with pytest.raises(ConfigError) as error:
            refuse()
        (problem,) = error.value.problems
        assert problem.startswith(f"{name} was {other_than(name)!r} in this run")
        assert f"{REMOVED[name].last} is the last version that has it" in problem


def test_what_only_training_needed_does_not_keep_anybody_from_a_finished_front():
    trained_with = run_with(**{name: other_than(name) for name in REFUSED})
    drawn = [name for name in REFUSED if REMOVED[name].is_drawn]
    if drawn:
        with pytest.raises(ConfigError) as error:
            completed(trained_with, is_finished=True)
        assert len(error.value.problems) == len(drawn)
    readable = run_with(**{name: other_than(name) for name in REFUSED if name not in drawn})
    assert parse(ConfigDict(completed(readable, is_finished=True)), {}) == read_settings([])
