"""Values that are wrong by themselves, and all problems in one message."""

from __future__ import annotations

import pickle

import pytest

from config import base
from config.settings.errors import ConfigError
from config.settings.parse import parse
from run.command_line import read_settings
from tests.support.mistakes import IN_NO_TABLE, OUT_OF_LIMITS

WRONG = {**OUT_OF_LIMITS, **IN_NO_TABLE}


@pytest.mark.parametrize("argument", WRONG)
def test_a_wrong_setting_is_named(argument):
    with pytest.raises(ConfigError) as error:
        read_settings([argument])
    assert WRONG[argument] in str(error.value)


def test_all_problems_come_in_one_message():
    arguments = ["--config.seed=-1", "--config.foo=1", "--config.sample.eta=0", "--config.train=1"]
    with pytest.raises(ConfigError, match="4 settings are wrong") as error:
        read_settings(arguments)
    assert len(error.value.problems) == 4
    sent_home = pickle.loads(pickle.dumps(error.value))  # as a process pool does
    assert (str(sent_home), sent_home.problems) == (str(error.value), error.value.problems)


def test_names_of_a_table_are_checked_where_the_table_is_given():
    config = base.get_config()
    config.train.update_rule, config.trackers = "mine", ("wandb",)
    assert parse(config, {}).train.update_rule == "mine"
    assert parse(config, {"train.update_rule": ["yours", "mine"]}).train.update_rule == "mine"
    tables = {"train.update_rule": ["ddpo", "mind"], "rewards.names": ["clip_alignment"]}
    with pytest.raises(ConfigError) as error:
        parse(config, tables)
    assert error.value.problems == [
        "rewards.names: 'colorfulness' is not one of clip_alignment",
        "train.update_rule: 'mine' is not one of ddpo, mind; did you mean 'mind'?",
    ]


def test_a_missing_key_is_named():
    config = base.get_config()
    with config.unlocked():
        del config.train["learning_rate"]
    with pytest.raises(ConfigError, match=r"train\.learning_rate is missing"):
        parse(config, {})
