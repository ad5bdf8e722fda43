"""A command of mo_front.py is one file and one line."""

from __future__ import annotations

import importlib.util

import mo_front
from front.commands import COMMANDS
from tests.support.paths import ROOT

HELLO = '''
"""Greet."""

from front.commands.command import Command, say


def _add_arguments(parser):
    parser.add_argument("--name", default="you")


def run(args):
    """Greet somebody by name."""
    say(f"hello {args.name}")


COMMAND = Command(summary="a greeting", add_arguments=_add_arguments, run=run)
'''


def test_a_command_of_one_more_file_is_listed_explained_and_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "hello.py").write_text(HELLO)
    spec = importlib.util.spec_from_file_location("hello", tmp_path / "hello.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(COMMANDS, "hello", module.COMMAND)
    assert mo_front.main(["hello", "--name=Pareto"]) == 0
    assert capsys.readouterr().out == "hello Pareto\n"
    text = mo_front.make_parser().format_help()
    assert "a greeting" in text


def test_every_file_of_the_folder_that_defines_a_command_is_in_the_table():
    files = {path.stem for path in (ROOT / "front" / "commands").glob("*.py")}
    assert files - {"__init__", "arguments", "command", "output"} == set(COMMANDS)
