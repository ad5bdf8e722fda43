"""Differences that are allowed between a run and its continuation."""

from __future__ import annotations

import pytest

from config.settings.errors import ConfigError
from config.settings.resume import changed_settings
from run.command_line import read_settings


def test_harmless_changes_are_accepted_and_reported():
    before = read_settings([]).to_json()
    changes = changed_settings(
        before,
        read_settings(
            [
                "--config.evolution.evolutionary_generations=50",
                "--config.trackers=wandb",
                "--config.resume_from=x",
                "--config.train.rows_per_pass=64",
            ]
        ),
    )
    assert changes == [
        "evolution.evolutionary_generations was 5 and is 50 now",
        "trackers was [] and is ['wandb'] now",
        "train.rows_per_pass was 128 and is 64 now; results stay the same up to rounding",
    ]


@pytest.mark.parametrize(
    "argument",
    [
        "--config.seed=1",
        "--config.evolution.evolutionary_generations=1",
        "--config.evaluation.num_steps=5",
    ],
)
def test_other_changes_are_refused_unless_they_are_forced_by_name(argument):
    name = argument.removeprefix("--config.").split("=")[0]
    before = read_settings([]).to_json()
    with pytest.raises(ConfigError, match=f"--config.resume_force={name}"):
        changed_settings(before, read_settings([argument]))
    forced = read_settings([argument, f"--config.resume_force={name}"])
    assert any(
        change.startswith(name) and change.endswith("forced by resume_force")
        for change in changed_settings(before, forced)
    )


def test_what_policies_are_made_of_cannot_be_forced():
    arguments = ["--config.adapter.rank=8", "--config.resume_force=adapter.rank"]
    with pytest.raises(ConfigError, match=r"adapter\.rank was 4 and is 8 now; .* start a new run"):
        changed_settings(read_settings([]).to_json(), read_settings(arguments))


def test_a_setting_that_is_newer_than_the_run_takes_its_default():
    before = read_settings([]).to_json()
    del before["agents"], before["train"]["clip_nats"]
    before["train"]["forgotten"] = 1
    changed_settings(before, read_settings([]))
    with pytest.raises(ConfigError, match=r"train\.clip_nats was not there and is 2\.0 now"):
        changed_settings(before, read_settings(["--config.train.clip_nats=2"]))


def test_a_run_older_than_a_setting_goes_on_as_it_did_whatever_is_the_default_now():
    before = read_settings([]).to_json()
    del before["evolution"]["start"], before["evaluation"]["num_steps"]
    with pytest.raises(ConfigError, match="2 settings are wrong") as error:
        changed_settings(before, read_settings(["--config.evolution.start=soup"]))
    assert "evolution.start was not there and is 'soup' now" in str(error.value)
    as_then = ["--config.evolution.start=even_weights", "--config.evaluation.num_steps=0"]
    assert len(changed_settings(before, read_settings(as_then))) == 2
