"""A user's own rewards: found by name, and mistakes reported before any slow import."""

from __future__ import annotations

import sys

import pytest
import torch

from config.settings.errors import ConfigError, UserError
from ddpo.rewards.lookup import build_reward
from ddpo.rewards.scorer import Scorer
from run.command_line import read_settings
from tests.support.rig import make_settings

MODULE = """
import torch

def warmth(images, prompts):
    return (images[:, 0] - images[:, 2]).mean(dim=(1, 2))

warmth.unit = "red - blue"

class Longest:
    unit = "letters"
    def __init__(self, device):
        self.device = device
    def __call__(self, images, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts])

def make_red():
    return lambda images, prompts: images[:, 0].mean(dim=(1, 2))

NUMBER = 3
"""


@pytest.fixture(name="own")
def _own(tmp_path, monkeypatch):
    """A folder on the path with `own_rewards.py`, and the path of that file."""
    path = tmp_path / "own_rewards.py"
    path.write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("own_rewards", None)


IMAGES = torch.stack(
    [torch.zeros(3, 2, 2), torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 2, 2)]
)


@pytest.mark.parametrize("is_file", [False, True])
def test_functions_classes_and_factories_are_rewards(own, is_file):
    where = str(own) if is_file else "own_rewards"
    names = tuple(f"{where}:{name}" for name in ("warmth", "Longest", "make_red"))
    scorer = Scorer.build(make_settings(rewards={"names": names}).rewards, torch.device("cpu"))
    assert scorer.units == {"warmth": "red - blue", "Longest": "letters", "make_red": "score"}
    rewards = scorer.gather([scorer.submit(IMAGES, ["a", "abc"])], 1)
    assert rewards.objectives == ("warmth", "Longest", "make_red")
    assert rewards.values.tolist() == [[[0, 1, 0], [1, 3, 1]]]


def test_a_file_may_define_dataclasses_and_is_forgotten_if_it_raises(tmp_path):
    settings, device, path = make_settings().rewards, torch.device("cpu"), tmp_path / "modern.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Red:\n"
        "    gain: float = 2.0\n"
        "    def __call__(self, images, prompts):\n"
        "        return self.gain * images[:, 0].mean(dim=(1, 2))\n"
        "1 / 0\n"
    )
    with pytest.raises(UserError, match="ZeroDivisionError"):
        build_reward(f"{path}:Red", settings, device)
    assert str(path) not in sys.modules
    path.write_text(path.read_text().removesuffix("1 / 0\n"))
    reward, _ = build_reward(f"{path}:Red", settings, device)
    del sys.modules[str(path)]
    assert reward(IMAGES, ["a", "b"]).tolist() == [0, 2]


def test_settings_take_own_rewards_beside_those_of_the_table(own):
    settings = read_settings([f"--config.rewards.names={own}:warmth,jpeg_compressibility"])
    assert settings.rewards.objectives == ("warmth", "jpeg_compressibility")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:f", "names a module that is not on the Python path: nowhere"),
        ("nowhere.deeper:f", "not on the Python path: nowhere.deeper"),
        ("nowhere.py:f", "names a file that does not exist: nowhere.py"),
        ("own_rewards:warmht", "does not define; it has warmth, Longest, make_red"),
        ("own_rewards:", "must look like module:function"),
        (":warmth", "must look like module:function"),
        ("own_rewards:a.b", "must look like module:function"),
        ("own_rewards:../../x", "must look like module:function"),
        ("own_rewards:" + 300 * "x", "does not define"),
        ("jpeg_compresibility", "did you mean 'jpeg_compressibility'?"),
    ],
)
def test_a_name_that_leads_nowhere_is_a_wrong_setting(own, name, message):
    with pytest.raises(ConfigError) as error:
        read_settings([f"--config.rewards.names={name},colorfulness"])
    assert message in str(error.value)
    assert len(error.value.problems) == 1


def test_guards_may_be_remote_or_of_the_user(own):
    options = ["--config.rewards.remotes=judge=http://127.0.0.1:1/judge"]
    settings = read_settings([*options, f"--config.guards.names=judge,{own}:warmth"])
    assert settings.guards.names == ("judge", f"{own}:warmth")
    with pytest.raises(ConfigError, match=r"guards\.names: 'jugde' .* did you mean 'judge'"):
        read_settings([*options, "--config.guards.names=jugde"])


def test_a_file_is_read_as_python_reads_it(tmp_path):
    path = tmp_path / "marked.py"
    path.write_text("def warmth(images): ...\n", encoding="utf-8-sig")
    settings = read_settings([f"--config.rewards.names={path}:warmth,colorfulness"])
    assert settings.rewards.names == (f"{path}:warmth", "colorfulness")


def test_what_lies_beside_a_file_can_be_imported(tmp_path):
    (tmp_path / "beside_it.py").write_text("NAMES = ('brightness', 'sharpness')\n")
    (tmp_path / "recipe.py").write_text(
        "import beside_it\nfrom config import base\n\n\ndef get_config():\n"
        "    config = base.get_config()\n    config.rewards.names = beside_it.NAMES\n"
        "    return config\n"
    )
    names = read_settings([f"--config={tmp_path / 'recipe.py'}"]).rewards.names
    assert names == ("brightness", "sharpness")
    (tmp_path / "own.py").write_text("from beside_it import NAMES as mine\n")
    with pytest.raises(UserError, match="expected a function"):
        build_reward(f"{tmp_path / 'own.py'}:mine", make_settings().rewards, torch.device("cpu"))


def test_two_own_rewards_of_one_name_are_refused(own):
    with pytest.raises(ConfigError, match="must not repeat an objective"):
        read_settings([f"--config.rewards.names=own_rewards:warmth,{own}:warmth"])


def test_code_that_fails_on_import_and_what_is_no_reward_are_named(own, tmp_path):
    settings, device = make_settings().rewards, torch.device("cpu")
    (tmp_path / "garbled.py").write_text("def f(:")
    with pytest.raises(ConfigError, match="names a file that is not valid Python"):
        read_settings([f"--config.rewards.names={tmp_path / 'garbled.py'}:f,colorfulness"])
    (tmp_path / "broken.py").write_text("def f(): pass\n1 / 0\n")
    with pytest.raises(UserError, match=r"broken\.py:f' could not be made: ZeroDivisionError"):
        build_reward(f"{tmp_path / 'broken.py'}:f", settings, device)
    with pytest.raises(UserError, match=r"expected a function of .*, got int"):
        build_reward("own_rewards:NUMBER", settings, device)
