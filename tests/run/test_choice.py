"""The run directory that a start means, and places where run directories may lie."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack

import pytest

from config.settings.errors import ConfigError, UserError
from run.choice import RunChoice, choose_run, mark_finished
from run.command_line import read_settings
from run.directory import open_run_dir


@pytest.fixture(name="choose")
def _choose(tmp_path):
    def choose(*arguments):
        options = [f"--config.{argument}" for argument in (f"logdir={tmp_path}", *arguments)]
        return choose_run(read_settings(options))

    return choose


def make_run(folder, name, *arguments, age=0, generations=None):
    """A run directory as far as a choice looks at it; finished if `generations` are."""
    checkpoints = folder / name / "checkpoints"
    (checkpoints / "00001").mkdir(parents=True)
    settings = read_settings([f"--config.{argument}" for argument in arguments]).to_json()
    (folder / name / "config.json").write_text(json.dumps({"settings": settings}))
    if generations is not None:
        (folder / name / "front.json").write_text("{}")
        mark_finished(folder / name, generations)
    os.utime(checkpoints, (10**9 - age, 10**9 - age))
    return folder / name


def test_without_resume_from_the_run_is_new(choose, tmp_path):
    assert choose("run_name=a") == RunChoice(path=tmp_path / "a", is_new=True)
    assert choose().path.parent == tmp_path
    make_run(tmp_path, "a")
    with pytest.raises(UserError, match=r"holds a run already.*--config.resume_from="):
        choose("run_name=a")


def test_auto_takes_the_run_worked_on_last_unfinished_ones_first(choose, tmp_path):
    assert choose("resume_from=auto").is_new
    done = make_run(tmp_path, "done", age=0, generations=11)
    assert choose("resume_from=auto") == RunChoice(path=done, is_new=False, is_finished=True)
    make_run(tmp_path, "older", age=20)
    newer = make_run(tmp_path, "newer", age=10)
    assert choose("resume_from=auto") == RunChoice(path=newer, is_new=False)
    (tmp_path / "link").symlink_to(newer)
    (tmp_path / "empty").mkdir()
    assert choose("resume_from=auto") == RunChoice(path=newer, is_new=False)


def test_auto_with_a_name_takes_that_run_or_begins_it(choose, tmp_path):
    make_run(tmp_path, "other")
    assert choose("resume_from=auto", "run_name=a") == RunChoice(path=tmp_path / "a", is_new=True)
    run = make_run(tmp_path, "a", age=50)
    assert choose("resume_from=auto", "run_name=a") == RunChoice(path=run, is_new=False)


def test_a_finished_run_is_not_finished_for_more_generations_or_without_its_front(choose, tmp_path):
    run = make_run(tmp_path, "a", generations=11)
    assert choose(f"resume_from={run}").is_finished
    assert not choose(f"resume_from={run}", "evolution.evolutionary_generations=12").is_finished
    (run / "front.json").unlink()
    assert not choose(f"resume_from={run}").is_finished


def test_a_finished_run_of_other_settings_is_not_what_is_asked_for(choose, tmp_path):
    run = make_run(tmp_path, "a", "adapter.rank=8", generations=11)
    assert choose("resume_from=auto").is_new
    with pytest.raises(ConfigError, match=r"adapter\.rank was 8 and is 4 now"):
        choose("resume_from=auto", "run_name=a")
    assert choose("resume_from=auto", "adapter.rank=8").path == run
    shorter = ("adapter.rank=8", "evolution.evolutionary_generations=1")
    assert choose("resume_from=auto", *shorter).is_finished


@pytest.mark.parametrize("left", ["front.json", "finished.json", "adapters/g000a0/x"])
def test_results_without_a_checkpoint_are_not_taken_over_by_a_new_run(choose, tmp_path, left):
    path = tmp_path / "a" / left
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    for arguments in (["run_name=a"], ["run_name=a", "resume_from=auto"]):
        with pytest.raises(UserError, match=f"holds {left.split('/')[0]} of another run, without"):
            choose(*arguments)


def test_there_must_be_something_to_go_on_with(choose, tmp_path):
    for path in (tmp_path / "nothing", tmp_path, "x" * 300):
        with pytest.raises(UserError, match="it has no checkpoint"):
            choose(f"resume_from={path}")


@pytest.mark.parametrize("inside", ["checkpoints/00001", "checkpoints", "config.json"])
def test_a_path_inside_a_run_means_the_run(choose, tmp_path, monkeypatch, inside):
    run = make_run(tmp_path, "a", "adapter.rank=8")
    assert choose(f"resume_from={run / inside}") == RunChoice(path=run, is_new=False)
    settings = read_settings([f"--config.resume_from={run / inside}"])
    assert settings.adapter.rank == 8  # the run's own, as for the run directory itself
    monkeypatch.chdir(run / "checkpoints" / "00001")
    assert choose("resume_from=.") == RunChoice(path=run, is_new=False)
    with pytest.raises(UserError, match="it has no checkpoint"):
        choose(f"resume_from={run / 'checkpoints' / '00009'}")


def test_unnamed_runs_of_one_second_each_get_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "2026-01-01_00-00-00")
    settings = read_settings([f"--config.logdir={tmp_path}"])
    with ExitStack() as parts:
        names = [open_run_dir(settings, parts).path.name for _ in range(3)]
        choice = choose_run(settings)
        choice.path.mkdir()  # between choice and folder, by yet another
        choices = iter([choice, choose_run(settings)])
        monkeypatch.setattr("run.directory.choose_run", lambda _: next(choices))
        names.append(open_run_dir(settings, parts).path.name)
    now = "2026-01-01_00-00-00"
    assert names == [now, f"{now}_2", f"{now}_3", f"{now}_5"]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "a\\b", "..", "x" * 300, "a\0b"])
def test_a_run_name_stays_in_the_log_directory(choose, name):
    with pytest.raises(ConfigError, match=r"run_name=.* must be a"):
        choose(f"run_name={name}")


def test_a_link_out_of_the_log_directory_is_refused(choose, tmp_path):
    inside, outside = tmp_path / "b", tmp_path.parent / "elsewhere"
    outside.mkdir()
    (tmp_path / "a").symlink_to(outside)
    for arguments in (["run_name=a"], ["run_name=a", "resume_from=auto"]):
        with pytest.raises(UserError, match="is a symbolic link out of logdir"):
            choose(*arguments)
    inside.mkdir()
    (tmp_path / "c").symlink_to(inside)
    assert choose("run_name=c").is_new
