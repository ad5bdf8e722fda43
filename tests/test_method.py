"""docs/method.md leads to what exists: functions that can be imported, tests that are there."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import lru_cache
from pkgutil import resolve_name

import pytest

import mo_train
from tests.support.paths import ROOT

NAME = re.compile(r"`([^`]+)`")


PAGE = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")


def read_tables():
    """The cells of every row, and of every head."""
    rows, heads = [], []
    for line in PAGE.splitlines():
        cells = line.strip("| ").split(" | ")
        if line.startswith("| ---"):
            heads.append(rows.pop())  # the line above was no row
        elif line.startswith("| "):
            rows.append(cells)
    return rows, heads


ROWS, HEADS = read_tables()


@lru_cache
def found_in(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def names_in(cell):
    names = NAME.findall(cell)
    assert names
    assert ", ".join(f"`{name}`" for name in names) == cell  # and nothing else
    return names


def test_every_table_ends_in_a_function_and_a_test():
    assert len(HEADS) > 10
    assert all(head[2:] == ["Function", "Test"] for head in HEADS)
    assert all(len(row) == 4 for row in ROWS)


def test_the_loop_is_that_of_the_program():
    loop = PAGE.split("```python\n")[1].split("```")[0]
    assert textwrap.indent(loop, "    ") in inspect.getsource(mo_train.train)


@pytest.mark.parametrize("function", sorted({name for row in ROWS for name in names_in(row[2])}))
def test_every_function_is_public_and_can_be_imported(function):
    assert "._" not in function
    resolve_name(function)  # raises where there is none


@pytest.mark.parametrize("test", sorted({name for row in ROWS for name in names_in(row[3])}))
def test_every_test_is_in_its_file(test):
    path, _, name = test.partition("::")
    assert name in found_in(path)
