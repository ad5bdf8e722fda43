"""Prompt sets and balanced draws."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

from config.base import PromptSettings
from ddpo.collect import collect
from ddpo.prompts import Prompt, draw_prompts, load_prompts, split_prompts
from ddpo.rewards.scorer import Scorer


def test_every_prompt_is_drawn_equally_often():
    prompts = [f"p{i}" for i in range(7)]
    drawn = [p for draw in range(14) for p in draw_prompts(prompts, 3, draw, seed=1)]
    assert set(Counter(drawn).values()) == {6}


def test_a_draw_depends_on_its_index_only():
    prompts = ["a", "b", "c", "d", "e"]
    assert draw_prompts(prompts, 4, 9, seed=2) == draw_prompts(prompts, 4, 9, seed=2)
    assert draw_prompts(prompts, 4, 9, seed=2) != draw_prompts(prompts, 4, 9, seed=3)
    assert len(draw_prompts(prompts, 12, 1, seed=0)) == 12


def test_a_file_is_a_prompt_set(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a cat\n\n a dog \na cat\n")
    assert load_prompts(str(path)) == ("a cat", "a dog")
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        load_prompts(str(path))
    with pytest.raises(ValueError, match="neither a file nor one of"):
        load_prompts("no_such_set")


SIZES = {
    "simple_animals": 45,
    "other_animals": 16,
    "imagenet_all": 998,  # "crane" and "maillot" each name two of the 1,000 classes
    "imagenet_animals": 398,
    "imagenet_dogs": 118,
    "nouns_activities": 45 * 3,
    "counting": 45 * 8,
}


@pytest.mark.parametrize(("name", "least"), [("varied", 200), ("tags", 64)])
def test_the_sets_for_people_are_split_into_roles(name, least):
    prompts, parts = load_prompts(name), split(name)
    assert len(prompts) >= least
    assert [len(parts.selection), len(parts.report)] == [len(prompts) // 8] * 2
    assert sorted(parts.train + parts.selection + parts.report) == sorted(prompts)
    words = [prompt.split() for prompt in prompts]
    assert all(2 <= len(each) <= 20 and len(" ".join(each)) < 100 for each in words)
    for role in (parts.train, parts.selection, parts.report):
        text = " ".join(role)
        if name == "varied":  # things, styles, counts, lettering
            for some in (" a ", "painting of|drawing of|photograph of", "two |three |four ", '"'):
                assert any(each in text for each in some.split("|"))


@pytest.mark.parametrize("name", SIZES)
def test_the_sets_of_ddpo_have_their_sizes(name):
    assert len(load_prompts(name)) == SIZES[name]


def test_the_sets_of_ddpo_hold_what_their_names_say():
    assert load_prompts("imagenet_dogs")[0] == "Chihuahua"
    assert load_prompts("imagenet_dogs")[-1] == "Mexican hairless"
    assert load_prompts("imagenet_animals")[207] == "golden retriever"
    assert load_prompts("imagenet_all")[-1] == "toilet tissue"
    assert {"an ant riding a bike", "a cat washing dishes"} <= set(load_prompts("nouns_activities"))
    counting = {prompt: prompt.metadata for prompt in load_prompts("counting")}
    assert counting["three mice"]["answers"] == ["three", "mouse"]
    assert counting["nine foxes"]["questions"][0] == "How many foxes does the image show?"
    assert not set(load_prompts("simple_animals")) & set(load_prompts("other_animals"))


def split(train, selection="", report=""):
    return split_prompts(PromptSettings(train=train, selection=selection, report=report))


@pytest.mark.parametrize("name", ["imagenet_all", "imagenet_dogs", "nouns_activities", "counting"])
def test_roles_that_share_a_set_get_disjoint_parts_of_all_of_it(name):
    parts = split(name)
    whole = load_prompts(name)
    assert sorted(parts.train + parts.selection + parts.report) == sorted(whole)
    assert len(parts.selection) == len(parts.report) == min(128, len(whole) // 8)
    assert parts.notes == ()
    places = [whole.index(prompt) for prompt in parts.train]
    assert places == sorted(places)


def test_a_role_with_a_set_of_its_own_has_all_of_it():
    parts = split("imagenet_animals", report="other_animals")
    assert parts.report == load_prompts("other_animals")
    assert len(parts.selection) == 398 // 8
    assert not set(parts.train) & set(parts.selection)


def test_a_small_set_is_shared_and_a_note_says_so():
    parts = split("simple_animals", report="other_animals")
    assert parts.train == parts.selection == load_prompts("simple_animals")
    assert parts.notes == (
        "train and selection share the 45 prompts of 'simple_animals', too few to split (below "
        "64); their noise differs",
    )
    parts = split("imagenet_dogs", selection="simple_animals", report="imagenet_animals")
    assert parts.notes == ("118 of 398 report prompts are trained on as well",)


@pytest.mark.parametrize(
    ("name", "text"), [("a.txt", "cat\ndog"), ("a.jsonl", '{"prompt": "cat"}')]
)
def test_a_byte_order_mark_is_no_part_of_the_first_prompt(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert load_prompts(str(tmp_path / name))[0] == "cat"


def test_json_lines_carry_metadata_to_the_reward_in_copies_too(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a cat", "metadata": {"answers": ["cat"]}}\n\n{"prompt": "dog"}\n')
    cat, dog = load_prompts(str(path))
    assert (cat, dog) == ("a cat", "dog")
    assert (cat.metadata, dog.metadata) == ({"answers": ["cat"]}, {})
    copy = pickle.loads(pickle.dumps(cat))
    assert (copy, copy.metadata) == (cat, cat.metadata)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("cat", "line 1 is not JSON"),
        ('{"prompt": ""}', "line 1 must be "),
        ('{"prompt": "cat", "metadata": 3}', "line 1 must be "),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, problem):
    path = tmp_path / "mine.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=problem):
        load_prompts(str(path))


def test_a_reward_sees_the_metadata_of_its_prompts(rig):
    """Through batch, chunks and scorer: what the sampler carries is what was loaded."""
    rig = rig(1)
    prompts = [Prompt("a", {"answers": [1]}), Prompt("b", {"answers": [2]})]
    batch = rig.sampler.prompt_batch(prompts, [1, 2], 1)
    seen = []

    def judge(images, texts):
        seen.extend(text.metadata["answers"][0] for text in texts)
        return images.mean(dim=(1, 2, 3))

    scorer = Scorer({"judge": judge})
    collect(rig.sampler, scorer, rig.agents, batch)
    scorer.close()
    assert seen == [1, 2]
