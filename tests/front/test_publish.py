"""The page of an unfinished run, and the last lines that a run prints."""

from __future__ import annotations

import re
import shlex
import sys
from types import SimpleNamespace

import mo_front
from front import publish
from front.front import Front
from front.publish import PAGE_SHARE, FrontPublisher, farewell
from front.report import write_report


def test_the_page_is_written_after_each_generation_unless_that_is_slow(tmp_path, monkeypatch):
    now, written, cost = [100.0], [], [0.1]

    def write(path, *, is_running):
        assert (path, is_running) == (tmp_path, True)
        written.append(now[0])
        now[0] += cost[0]

    monkeypatch.setattr(publish, "write_report", write)
    monkeypatch.setattr(publish.time, "monotonic", lambda: now[0])
    run = SimpleNamespace(
        processes=SimpleNamespace(by_first=lambda function, *arguments: function(*arguments)),
        recorder=SimpleNamespace(show=lambda _: None),
        directory=SimpleNamespace(path=tmp_path),
    )
    publisher = FrontPublisher()
    for _ in range(3):  # generations of 10 s
        publisher.generation(run)
        now[0] += 10
    assert len(written) == 3
    cost[0] = 10.0
    began = now[0]
    for _ in range(100):
        publisher.generation(run)
        now[0] += 10
    pages = len(written) - 3
    assert 2 <= pages <= 1 + PAGE_SHARE * (now[0] - began) / cost[0]


def test_a_page_reloads_itself_while_the_run_goes_on_and_says_so(run_copy):
    refresh = '<meta http-equiv="refresh"'
    assert refresh not in write_report(run_copy).read_text()
    (run_copy / "front.json").unlink()
    page = write_report(run_copy, is_running=True).read_text()
    assert refresh in page
    assert "reloads itself every 30 seconds" in page
    assert refresh not in write_report(run_copy).read_text()  # of a run that was stopped


def test_the_end_says_what_to_open_and_commands_that_work(run_copy, monkeypatch, capsys):
    monkeypatch.chdir(run_copy.parent)
    front = Front.load(run_copy.name)
    lines = dict(line.split(maxsplit=1) for line in farewell(front))
    assert f"{len(front.policies)} policies" in lines["done"]
    assert re.search(r"; \d+ members? clearly better than the base model in every", lines["done"])
    assert lines["look"] == "run/report.html"
    draw, take = shlex.split(lines["draw"]), shlex.split(lines["take"])
    assert draw[1].endswith("mo_front.py")
    assert draw[0] in (sys.executable, "python")
    assert mo_front.main(take[2:]) == 0
    assert (run_copy.parent / "my_adapter").is_dir()
    assert mo_front.make_parser().parse_args(draw[2:]).prompt == ["e"]
    capsys.readouterr()
