"""The check of the pages finds what it says, and only that."""

from __future__ import annotations

import pytest

from tools.prose import main

LONG = " ".join(["word"] * 25)  # 124 columns


def found(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return main([str(page)]).removeprefix(f"{page}:")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"# Title\n\n{LONG}", "3: line of 124 columns; wrap it at 120"),
        ("one " * 16 + "\n" + "two " * 16, "1: sentence of 32 words; make two of it: one one"),
        ("It draws four pictures a prompt.", "1: 'pictures a prompt': write 'per' for a rate"),
        ("- It\n- does all\n  at once.", "2: 'at once': write 'together' or 'immediately'"),
        ("| a |\n| [b](c.md) |", "2: link to c.md: there is no such file"),
        ("# A title\n\n[b](#a-titel)", "3: link to #a-titel: that page has no such heading"),
    ],
)
def test_a_place_is_named_with_its_line_and_what_to_do(tmp_path, text, message):
    assert found(tmp_path, text).startswith(message)


@pytest.mark.parametrize(
    "text",
    [
        f"```\n{LONG}, and all at once\n```\n",
        f"| {LONG}, all at once |",
        f"See [the page](https://example.org/{'long' * 40}) about two images per agent.",
        "A `sample.of at once` is code. " + "One sentence of five words. " * 3,
        "# `A` title, twice\n\n[here](#a-title-twice)",
        "The two cannot be told apart.",
    ],
)
def test_a_page_without_such_a_place_passes(tmp_path, text):
    assert found(tmp_path, text) == ""
