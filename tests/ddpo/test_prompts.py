"""Prompt sets and balanced draws."""

from __future__ import annotations

from collections import Counter

import pytest

from ddpo.prompts import draw_prompts, load_prompts


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
