"""Prompts that are too long for the model or a reward are counted and reported."""

from __future__ import annotations

import torch

from ddpo.lengths import all_prompts, length_notes
from ddpo.prompts import PromptSplit
from ddpo.rewards.clip import load_clip
from ddpo.rewards.clip_alignment import ClipAlignment
from ddpo.rewards.scorer import Scorer
from run.dry_run import dry_run
from tests.support.rig import make_settings


def test_each_reader_says_how_many_it_cuts():
    prompts = ["a cat", "a dog", "x" * 100]
    assert list(length_notes({"the model": [], "a": []}, prompts)) == []
    assert list(length_notes({"the model": prompts[2:], "b": prompts[1:]}, prompts)) == [
        f"the model does not read the ends of 1 of 3 prompts, which are too long: "
        f"'{60 * 'x'}...'; raise pretrained.prompt_parts",
        "b does not read the ends of 2 of 3 prompts, which are too long: 'a dog'",
    ]


def test_prompts_of_all_roles_count_once():
    split = PromptSplit(train=("a", "b"), selection=("b",), report=("c",), notes=())
    assert all_prompts(split, "bad") == ["a", "b", "c", "bad"]
    assert all_prompts(split) == ["a", "b", "c"]


def test_a_reward_knows_what_it_does_not_read():
    tower = load_clip("emoji-clip", torch.device("cpu"), "float32")
    most = tower.model.config.text_config.max_position_embeddings - 2
    word = "cat "
    count = len(tower.tokenizer(word * 10, add_special_tokens=False).input_ids) // 10
    short, long = word * (most // count), word * (most // count + 1)
    rewards = {"clip": ClipAlignment(tower), "own": lambda *_: torch.zeros(1)}
    assert Scorer(rewards).cut([short, long]) == {"clip": [long]}
    # ... and indeed does not: what follows is nothing to it.
    same = tower.embed_texts([long + "dog", long + "fox"])
    assert torch.equal(*same)


def test_a_dry_run_counts_what_is_cut(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("cat\n" + "cat " * 400 + "\n")
    settings = make_settings(prompts={"train": str(path), "report": str(path)})
    report = dry_run(settings)
    assert "ready; it does not read the ends of 1 of 2 prompts" in report
    assert "the model does not read the ends of 1 of 2 prompts" in report
