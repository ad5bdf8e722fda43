"""A normalisation is a function and a line in a table."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from ddpo.advantages import advantages
from ddpo.normalisations import NORMALISATIONS
from ddpo.types import PromptStatistics
from tests.support.paths import ROOT
from tests.support.rig import make_settings

SIGNS = '''
def signs(rewards, weights, scales, per_prompt):
    """Whether a reward is above its prompt's mean, whatever by how much."""
    centre, _ = per_prompt(rewards)
    return (rewards - centre).sign() @ weights
'''


def test_one_from_a_file_of_its_own_is_used_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "signs.py").write_text(SIGNS)
    spec = importlib.util.spec_from_file_location("signs", tmp_path / "signs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(NORMALISATIONS, "signs", module.signs)
    settings = make_settings(advantage={"normalisation": "signs", "min_count": 2}).advantage
    rewards = torch.tensor([[[1.0, 0.0], [2.0, 100.0], [9.0, 50.0], [4.0, 10.0]]])
    weights = torch.tensor([[0.75, 0.25]])
    found, _ = advantages(
        rewards, weights, [["a", "a", "b", "b"]], [PromptStatistics()], torch.ones(2), settings
    )
    by_hand = torch.tensor([-1.0, 1.0, 1.0, -1.0])  # signs agree in both objectives
    torch.testing.assert_close(found[0], by_hand, rtol=1e-4, atol=0)


def test_the_table_can_be_read_without_torch():
    code = "import sys, ddpo.normalisations; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", ["frozen", "per_prompt", "raw"])
def test_an_objective_without_variance_teaches_nothing(name):
    settings = make_settings(advantage={"normalisation": name, "min_count": 2}).advantage
    rewards = torch.full((1, 4, 2), 3.0)
    found, _ = advantages(
        rewards,
        torch.tensor([[0.5, 0.5]]),
        [["a", "a", "b", "b"]],
        [PromptStatistics()],
        torch.ones(2),
        settings,
    )
    assert found.abs().max() < 1e-3
