"""The progress of a run: bars on a terminal, lines in a log."""

from __future__ import annotations

import io
import re
import sys
import time
from types import SimpleNamespace

import pytest

from run import progress
from run.progress import Progress

GENERATION = SimpleNamespace(index=2, stage="evolutionary", num_iterations=4)


def test_a_log_gets_a_line_when_nothing_was_said_for_a_while(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_REFRESH", 0.01)
    monkeypatch.setattr(progress, "_QUIET", 0.02)
    bars = Progress(7)
    bars.time_left = lambda: 200.0
    bars.generation(GENERATION)
    advance = bars.steps("evaluating", 4)
    advance()
    expected, out = "in generation 3, evaluating 25%, about 3 min left", ""
    end = time.monotonic() + 20
    while expected not in out:
        assert time.monotonic() < end
        time.sleep(0.01)
        out += capsys.readouterr().out
    bars.close()
    assert bars.fraction == pytest.approx(0.25)


def test_a_process_that_is_not_the_first_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_REFRESH", 0.01)
    monkeypatch.setattr(progress, "_QUIET", 0.0)
    bars = Progress(7, is_shown=False)
    bars.steps("evaluating", 4)()
    bars.say("a line")
    time.sleep(0.05)
    bars.close()
    assert capsys.readouterr() == ("", "")


def test_the_line_of_a_generation_says_how_far_it_is(capsys):
    bars = Progress(7)
    bars.time_left = lambda: 61.0
    bars.generation(GENERATION)
    bars.finished(
        GENERATION, {"morl/archive_size": 1.0, "morl/hypervolume": 0.25, "morl/sparsity": 0.0}
    )
    bars.close()
    line = capsys.readouterr().out
    end = "s: 1 policy on the front, hypervolume 0.250, about 70 s left\n"
    assert re.fullmatch(r"generation 3 of 7 in \d+ " + re.escape(end), line)


@pytest.mark.parametrize("columns", [200, 60])
def test_bars_have_names_and_fit_the_terminal(monkeypatch, columns):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(progress, "_REFRESH", -1.0)
    bars = Progress(7)
    bars.time_left = lambda: 8000.0
    bars.generation(GENERATION)
    for name in ("sampling", "updating", "evaluating"):
        advance = bars.steps(name, 3)
        for _ in range(3):
            advance()
    bars.close()
    lines = [re.sub(r"\x1b\[[A-Z]", "", line) for line in re.split(r"[\r\n]", terminal.getvalue())]
    for name in ("generations", "iterations", "sampling", "updating", "evaluating", "2 h 13 min"):
        assert any(name in line for line in lines)
    assert max(map(len, lines)) <= min(79, columns - 1)
