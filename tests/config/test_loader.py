"""From the command line to settings, without a deep-learning library."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from config import base
from config.settings.errors import ConfigError
from config.settings.resume import changed_settings
from run.command_line import read_settings
from tests.support.mistakes import MISTAKES, UNREADABLE
from tests.support.paths import ROOT


@pytest.mark.parametrize("argument", UNREADABLE)
def test_what_cannot_be_read_is_named(argument):
    with pytest.raises(ConfigError) as error:
        read_settings([argument])
    assert UNREADABLE[argument] in str(error.value)


def test_the_program_answers_with_exit_code_2_and_no_traceback_before_torch_is_imported():
    code = (
        "import sys, runpy; sys.argv = ['mo_train.py', '--config.seed=-1', '--config.foo=1']\n"
        "try: runpy.run_path('mo_train.py', run_name='__main__')\n"
        "finally: assert 'torch' not in sys.modules"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert "2 settings are wrong" in run.stderr


def test_every_mistake_of_the_tables_is_met_without_importing_torch():
    """One process that imports nothing else: all tables in a second, start included."""
    code = (
        "import json, sys\n"
        "from config.settings.errors import ConfigError\n"
        "from run.command_line import read_settings\n"
        "messages = []\n"
        "for argument in json.load(sys.stdin):\n"
        "    try: read_settings([argument])\n"
        "    except ConfigError as error: messages.append(str(error))\n"
        "assert not {'torch', 'diffusers', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "json.dump(messages, sys.stdout)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(list(MISTAKES)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    messages = json.loads(run.stdout)
    assert len(messages) == len(MISTAKES) > 40
    for message, expected in zip(messages, MISTAKES.values(), strict=True):
        assert expected in message


@pytest.mark.parametrize("name", ["smoke", "smoke.py", str(ROOT / "config" / "smoke.py")])
def test_a_recipe_is_found_by_its_bare_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_settings([f"--config={name}"]).evolution.num_agents == 2
    (tmp_path / "smoke").mkdir()
    assert read_settings(["--config", name]).evolution.num_agents == 2


def test_a_file_is_preferred_to_a_recipe_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = "from config import base\n\ndef get_config():\n    config = base.get_config()\n"
    (tmp_path / "smoke").write_text("no Python file has such a name")
    (tmp_path / "smoke.py").write_text(f"{recipe}    config.seed = 5\n    return config\n")
    assert read_settings(["--config=smoke.py"]).seed == 5
    with pytest.raises(ConfigError, match="--config=smoke is not a Python file"):
        read_settings(["--config=smoke"])


def test_home_is_expanded_in_paths_that_are_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(
        "from config import base\n\ndef get_config():\n    config = base.get_config()\n"
        "    config.pretrained.lora = '~/style.safetensors'\n    return config\n"
    )
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    (tmp_path / "warm.py").write_text("def warmth(images, prompts): ...\n")
    words = ["prompts.train=~/prompts.txt", "rewards.names=~/warm.py:warmth,colorfulness"]
    words += ["logdir=~/logs", "run_name=~", "sample.negative_prompt=~/ugly"]
    words += ["sample.guidance_scale=2"]
    settings = read_settings(["--config=~/mine.py", *(f"--config.{word}" for word in words)])
    assert settings.pretrained.lora == f"{tmp_path}/style.safetensors"
    assert settings.prompts.train == f"{tmp_path}/prompts.txt"
    assert settings.rewards.names == (f"{tmp_path}/warm.py:warmth", "colorfulness")
    assert settings.logdir == f"{tmp_path}/logs"
    assert (settings.run_name, settings.sample.negative_prompt) == ("~", "~/ugly")
    assert read_settings(["--config.logdir=~no-such-user/logs"]).logdir == "~no-such-user/logs"
    (tmp_path / "run").mkdir()
    record = {"settings": read_settings(["--config.seed=9"]).to_json()}
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    resumed = read_settings(["--config.resume_from=~/run"])
    assert (resumed.seed, resumed.resume_from) == (9, f"{tmp_path}/run")


def test_an_override_is_read_by_the_type_of_its_setting_not_of_the_recipe_s_value(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from ml_collections import FrozenConfigDict\nfrom config import base\n\n"
        "def get_config():\n    config = base.get_config().to_dict()\n"
        "    config['train']['learning_rate'] = 1\n    del config['train']['kl_coef']\n"
        "    config['evaluation'] = 7\n    return FrozenConfigDict(config)\n"
    )
    words = ["train.learning_rate=1e-3", "train.kl_coef=0.5", "evaluation.num_steps=3"]
    with pytest.raises(ConfigError) as error:
        read_settings([f"--config={recipe}", *(f"--config.{word}" for word in words)])
    assert error.value.problems == ["evaluation=7 must be a section of settings"]
    recipe.write_text(recipe.read_text().replace("config['evaluation'] = 7", ""))
    settings = read_settings([f"--config={recipe}", *(f"--config.{word}" for word in words)])
    assert (settings.train.learning_rate, settings.train.kl_coef) == (1e-3, 0.5)
    assert settings.evaluation.num_steps == 3


def test_overrides_reach_the_settings():
    settings = read_settings(
        [
            "--config.train.learning_rate=1e-3",
            "--config.rewards.names",
            "colorfulness,jpeg_compressibility",
            "--config.rewards.reference=(1, -2.5)",
            "--config.rewards.ideal=2,-1",
            "--config.pretrained.offload_text_encoders=true",
            "--config.seed=7",
        ]
    )
    assert settings.train.learning_rate == 1e-3
    assert settings.rewards.names == ("colorfulness", "jpeg_compressibility")
    assert settings.rewards.reference == (1.0, -2.5)
    assert settings.pretrained.offload_text_encoders is True
    assert settings.seed == settings.evolution.seed == 7


def test_a_run_to_continue_brings_its_settings_unless_a_recipe_is_given(tmp_path, monkeypatch):
    began = ["--config.adapter.rank=8", "--config.adapter.target_modules=to_q,to_v"]
    began += ["--config.resume_force=train.kl_coef", "--config.train.learning_rate=1"]
    record = {"settings": read_settings(began).to_json()}
    del record["settings"]["train"]["max_sensitivity"]  # which its program did not have yet
    (tmp_path / "config.json").write_text(json.dumps(record))
    resume = f"--config.resume_from={tmp_path}"
    settings = read_settings([resume, "--config.train.learning_rate=2"])
    assert settings.adapter.rank == 8
    assert settings.adapter.target_modules == ("to_q", "to_v")
    assert settings.resume_force == ()
    assert settings.train.max_sensitivity == 0
    assert settings.train.learning_rate == 2
    changed_settings(record["settings"], read_settings([resume]))
    assert read_settings([resume, f"--config={base.__file__}"]).adapter.rank == 4
    monkeypatch.chdir(tmp_path)
    assert read_settings(["--config.resume_from="]).adapter.rank == 4
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is damaged"):
        read_settings([resume])
