"""docs/compatibility.md is made from its rows, and every row names a test that exists."""

from __future__ import annotations

import ast
from functools import lru_cache

import pytest

from tests.support.paths import ROOT
from tools.compatibility import PAGE, page, read_rows

ROWS = read_rows()


@lru_cache
def functions_in(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_page_is_made_from_its_rows():
    """Mend it with `python -m tools.compatibility`."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_there_are_at_least_80_kinds_each_once():
    kinds = [(row.section, row.kind) for row in ROWS]
    assert len(kinds) >= 80
    assert [kind for kind in kinds if kinds.count(kind) > 1] == []


@pytest.mark.parametrize("shown", sorted({row.test.split("[")[0] for row in ROWS}))
def test_what_shows_a_row_exists(shown):
    path, _, name = shown.partition("::")
    assert name in functions_in(path)


def test_every_row_is_whole():
    for row in ROWS:
        assert all((row.section, row.kind, row.outcome, row.test, row.source)), row
