"""Settings that do not go together are refused, each problem in a sentence."""

from __future__ import annotations

import pytest

from config.settings.errors import ConfigError
from run.command_line import read_settings
from tests.support.mistakes import AGAINST_A_RULE
from tests.support.paths import DDPO


@pytest.mark.parametrize("argument", AGAINST_A_RULE)
def test_a_broken_rule_is_named(argument):
    with pytest.raises(ConfigError) as error:
        read_settings([argument])
    assert AGAINST_A_RULE[argument] in str(error.value)


def test_one_family_of_adapters_has_fixed_tasks():
    kind = "--config.agents.kind=conditioned"
    assert read_settings([kind]).agents.kind == "conditioned"
    for change, only in (("strategy=moead", "fixed_weights"), ("start=soup", "even_weights")):
        with pytest.raises(ConfigError, match=f"set evolution.{change.split('=')[0]}={only}"):
            read_settings([kind, f"--config.evolution.{change}"])


@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
def test_a_sampler_with_timesteps_of_its_own_takes_no_spacing(sampler):
    spacing = "--config.pretrained.timestep_spacing=trailing"
    with pytest.raises(ConfigError, match=f"has no effect on sample.sampler={sampler}"):
        read_settings([spacing, f"--config.sample.sampler={sampler}"])
    assert read_settings([spacing, "--config.sample.sampler=euler_a"]).sample.sampler == "euler_a"


@pytest.mark.parametrize("rule", ["ddpo", "awm", "diffusion_nft"])
def test_one_step_is_for_gradients_of_rewards_alone(rule):
    few = ["--config.sample.num_steps=1", "--config.train.gradient_steps=1"]
    assert read_settings(few).sample.num_steps == 1
    with pytest.raises(ConfigError, match="a single step ends in the picture"):
        read_settings([*few, f"--config.train.update_rule={rule}"])


def test_what_does_not_go_with_gradients_of_rewards_is_named():
    changes = {
        "train.update_rule": "reward_gradient",
        "train.num_inner_epochs": 2,
        "train.updates_per_epoch": 2,
        "train.gradient_steps": 9,
        "advantage.normalisation": "raw",
        "rewards.black_boxes": "sharpness",
    }
    with pytest.raises(ConfigError) as error:
        read_settings([f"--config.{name}={value}" for name, value in changes.items()])
    problems = "\n".join(error.value.problems)
    for text in ("train.num_inner_epochs=2", "train.updates_per_epoch=2", "gradient_steps=9"):
        assert text in problems
    assert "advantage.normalisation=raw" in problems
    assert "'sharpness' is not one of rewards.names" in problems
    assert len(error.value.problems) == 5
    with pytest.raises(ConfigError, match="has no effect"):
        read_settings([f"--config={DDPO}", "--config.rewards.black_boxes=clip_alignment"])


def test_what_a_gradient_taken_while_sampling_cannot_be_is_named():
    train = {
        "single_pass": True,
        "update_rule": "awm",
        "num_inner_epochs": 2,
        "kl_coef": 0.1,
        "timestep_fraction": 0.5,
    }
    with pytest.raises(ConfigError) as error:
        read_settings(
            [
                f"--config={DDPO}",
                *(f"--config.train.{name}={value}" for name, value in train.items()),
            ]
        )
    problems = "\n".join(error.value.problems)
    for name in (*list(train)[1:], "updates_per_epoch"):
        assert f"train.{name}=" in problems
    assert len(error.value.problems) == 5
    fine = [
        f"--config={DDPO}",
        "--config.train.single_pass=True",
        "--config.train.updates_per_epoch=1",
    ]
    assert read_settings(fine).training_sample.rows_per_pass == 128
