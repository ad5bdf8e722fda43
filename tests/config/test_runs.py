"""The run that a path means, and the message about a missing run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from config.settings.resume import run_meant_by
from config.settings.runs import named_run, runs_beside, runs_in
from front.errors import FrontError
from front.front import Front
from front.report import ReportError, write_report


@pytest.fixture(name="logs")
def _logs(tmp_path, monkeypatch):
    """Three runs, of which the second was written to last, and a folder that is no run."""
    monkeypatch.chdir(tmp_path)
    for name, when in (("a", 100), ("b", 300), ("c", 200)):
        run = tmp_path / "logs" / name
        run.mkdir(parents=True)
        (run / "config.json").write_text("{}")
        os.utime(run / "config.json", (when, when))
    (tmp_path / "logs" / "none").mkdir()
    return tmp_path / "logs"


def test_latest_is_the_newest_run_of_its_folder(logs):
    assert runs_in(logs) == [logs / "b", logs / "c", logs / "a"]
    assert named_run(logs / "latest") == logs / "b"
    assert named_run(Path("latest")) == Path("logs/b")
    assert run_meant_by("latest") == Path("logs/b")
    (logs / "a" / "search.json").write_text("{}")  # continues
    assert named_run(Path("logs/latest")) == Path("logs/a")


def test_a_folder_called_latest_is_itself_and_other_names_stay(logs):
    assert named_run(logs / "c") == logs / "c"
    (logs / "latest").mkdir()
    assert named_run(logs / "latest") == logs / "latest"


def test_without_runs_latest_stays_a_name(tmp_path):
    assert named_run(tmp_path / "nowhere" / "latest") == tmp_path / "nowhere" / "latest"
    assert runs_beside(tmp_path / "nowhere" / "run") == ""


def test_a_run_that_is_not_there_lists_those_that_are(logs):
    for name in ("typo", "logs/typo"):
        with pytest.raises(FrontError, match=r"typo is not a folder.*there are logs/b, logs/c"):
            Front.load(name)
        with pytest.raises(ReportError, match=r"there are logs/b, logs/c, logs/a"):
            write_report(Path(name))
    for number in range(9):
        (logs / f"more{number}").mkdir()
        (logs / f"more{number}" / "config.json").write_text("{}")
    assert "and 7 more" in runs_beside(logs / "typo")
