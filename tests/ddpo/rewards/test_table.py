"""The table: one file and one line add a reward, and one setting moves any of its models."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from config.settings.errors import ConfigError
from ddpo.rewards import REWARDS, markdown_table, parts_of
from ddpo.rewards.guards import Guards
from ddpo.rewards.scorer import RewardError, Scorer
from run.command_line import read_settings
from tests.support.paths import ROOT

CPU = torch.device("cpu")
TINT = '''
"""How much of a tint there is, by a filter that was learnt elsewhere."""

from ddpo.rewards import Part, RewardEntry
from ddpo.rewards.image_batch import BatchReward
from ddpo.rewards.weights import load_tensors


class Tint(BatchReward):
    def __init__(self, tint):
        self.tint = tint

    def score(self, batch, prompts):
        return batch.images.mean(dim=(2, 3)) @ self.tint


def build(sources, device, dtype):
    return Tint(load_tensors("tint.filter", sources["filter"])["tint"].to(device))


REWARD = RewardEntry(
    unit="tints",
    meaning="the right tint",
    published="nowhere",
    parts={"filter": Part(source="owner/filters/tint.safetensors", licence="MIT")},
    build=build,
)
'''
IMAGES = torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 4, 4)  # red, green, blue


@pytest.fixture(name="tint")
def _tint(tmp_path, monkeypatch):
    """A reward with weights of its own: a file, a line in the table, and where its weights are."""
    (tmp_path / "reward_tint.py").write_text(TINT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(REWARDS, "tint", "reward_tint")
    save_file({"tint": torch.tensor([1.0, 0.0, -2.0])}, tmp_path / "mine.safetensors")
    yield tmp_path / "mine.safetensors"
    sys.modules.pop("reward_tint", None)


def test_a_reward_with_weights_of_its_own_is_one_file_and_one_line(tint):
    settings = read_settings(
        [
            "--config.rewards.names=tint,colorfulness",
            f"--config.rewards.sources=tint.filter={tint}",
        ]
    )
    scorer = Scorer.build(settings.rewards, CPU)
    rewards = scorer.gather([scorer.submit(IMAGES, ["a", "b", "c"])], 1)
    scorer.close()
    assert scorer.units["tint"] == "tints"
    assert rewards.objectives == ("tint", "colorfulness")
    assert rewards.values[0, :, 0].tolist() == [1, 0, -2]
    row = next(line for line in markdown_table().splitlines() if "`tint`" in line)
    assert "tints" in row
    assert "`filter`: owner/filters/tint.safetensors (MIT)" in row


def test_such_a_reward_can_be_a_guard_too(tint):
    words = ["--config.guards.names=tint", f"--config.rewards.sources=tint.filter={tint}"]
    guards = Guards.build(read_settings(words), CPU)
    assert guards.gather([guards.submit(IMAGES, ["a", "b", "c"])], 1).tolist() == [[[1], [0], [-2]]]
    guards.close()


def test_without_a_source_of_its_own_a_part_comes_from_its_default(tint, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda *where: (asked.append(where), (_ for _ in ()).throw(OSError("no network")))[1],
    )
    settings = read_settings(["--config.rewards.names=tint,colorfulness"])
    with pytest.raises(RewardError, match=r"reward 'tint' .* rewards\.sources=tint\.filter=FILE"):
        Scorer.build(settings.rewards, CPU)
    assert asked == [("owner/filters", "tint.safetensors")]


def test_a_source_replaces_the_default_of_its_part_alone():
    sources = ("aesthetic_score.head=a/b=c.pth", "clip_score.clip=mine")
    parts = parts_of("aesthetic_score", sources)
    assert parts["head"].source == "a/b=c.pth"
    assert parts["clip"] == parts_of("aesthetic_score")["clip"]
    assert str(parts["clip"]) == "openai/clip-vit-large-patch14 (MIT, 1.71 GB)"
    assert parts_of("diversity", ("diversity.clip=mine",))["clip"].source == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("aesthetic_score", "'aesthetic_score' must look like REWARD.PART=SOURCE"),
        ("aesthetic_score=x", "must look like REWARD.PART=SOURCE, as in aesthetic_score.head=my"),
        ("aesthetic_score.head=", "must look like"),
        (".head=x", "'' is not one of"),
        ("asthetic_score.head=x", "did you mean 'aesthetic_score'?"),
        (
            "aesthetic_score.haed=x",
            "'aesthetic_score.haed' is not one of aesthetic_score.clip, aesthetic_score.head; "
            "did you mean 'aesthetic_score.head'?",
        ),
        ("base_similarity.clap=x", "did you mean 'base_similarity.clip'?"),
        ("brightness.clip=x", "'brightness.clip=x' has no effect, brightness is a formula; remove"),
        ("mine.py:warmth.clip=x", "is not one of"),
        ("diversity.clip=x,diversity.clip=y", "must not give a part twice"),
    ],
)
def test_a_wrong_source_is_reported_with_the_other_wrong_settings(text, message):
    with pytest.raises(ConfigError) as error:
        read_settings([f"--config.rewards.sources={text}", "--config.seed=-1"])
    problems = error.value.problems
    assert len(problems) == 2
    assert message in " ".join(problems)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        (
            "from run.command_line import read_settings\n"
            "read_settings(['--config.rewards.names=clip_score,brightness'])",
            {"torch", "transformers", "huggingface_hub"},
        ),
        (
            "from ddpo.rewards import REWARDS, reward_entry\nlist(map(reward_entry, REWARDS))",
            {"transformers", "huggingface_hub"},
        ),
    ],
    ids=["the table", "the files"],
)
def test_little_is_imported_to_know_the_rewards(code, absent):
    """`--dry_run` takes the hub offline once settings are read: that must not be too late."""
    code += f"\nimport sys\nprint(sorted({absent!r} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == "[]\n"
