"""The run directory outlasts a disk that takes nothing for a while."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from config.settings.errors import UserError
from ddpo.agents.adapter import holds_adapter
from ddpo.files import ADAPTER_FILE
from front import Front
from front.publish import FrontPublisher
from run import directory as run_dir_module
from run.directory import RunDir, open_run_dir
from run.versions import Versions
from tests.support.rig import make_rig, make_settings
from tests.support.runs import FINISHED


@pytest.fixture(name="run_dir")
def _run_dir(tmp_path):
    with ExitStack() as parts:
        yield open_run_dir(replace_logdir(make_settings(), tmp_path), parts)


def replace_logdir(settings, folder):
    return dataclasses.replace(settings, logdir=str(folder), run_name="run")


def lines(run_dir):
    text = (run_dir.path / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_lines_that_a_full_disk_refused_are_written_later_in_order(run_dir):
    run_dir.log(1, {"x": 1.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        run_dir.log(2, {"x": 2.0})
        run_dir.log(3, {"x": 3.0})
        with pytest.raises(OSError, match="No space"):
            run_dir.flush_metrics()
    assert [line["step"] for line in lines(run_dir)] == [1]
    run_dir.log(4, {"x": 4.0, "y": float("nan")})
    assert [(line["step"], line["x"]) for line in lines(run_dir)] == [(i, i) for i in range(1, 5)]
    assert "y" not in lines(run_dir)[-1]
    assert run_dir.flush_metrics() == (run_dir.path / "metrics.jsonl").stat().st_size


def refuse(*arguments, **options):
    raise OSError(28, "No space left on device")


def test_failures_are_counted_in_a_row(run_dir, caplog):
    def fail(generation):
        with run_dir.outlasting_a_full_disk(generation):
            refuse()

    fail(0)
    with run_dir.outlasting_a_full_disk(1):
        pass
    fail(2)
    fail(3)
    assert "generation 3 could not be saved" in caplog.text
    assert "ends if 1 more generations in a row cannot be saved" in caplog.text
    with pytest.raises(UserError, match=r"generation 4 could not be saved .* 3 failures in a row"):
        fail(4)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    settings = replace_logdir(make_settings(), tmp_path / "file")
    with ExitStack() as parts, pytest.raises(UserError, match=r"cannot be written .* logdir"):
        open_run_dir(settings, parts)


def test_a_run_that_began_between_choice_and_lock_is_not_taken_for_a_new_one(tmp_path, monkeypatch):
    @contextmanager
    def lock_after_another_run(path):
        (path / "checkpoints" / "00000").mkdir(parents=True)
        yield

    monkeypatch.setattr(run_dir_module, "lock", lock_after_another_run)
    settings = replace_logdir(make_settings(), tmp_path)
    with ExitStack() as parts, pytest.raises(UserError, match="another process has run in"):
        open_run_dir(settings, parts)


def test_a_published_front_stays_whole_until_the_next_one_is(make_run, run_copy, monkeypatch):
    front = json.loads((run_copy / "front.json").read_text())
    left = {**front["policies"][0], "id": "left", "adapter": "adapters/left"}  # the archive since
    front["policies"].append(left)
    (run_copy / "front.json").write_text(json.dumps(front))
    shutil.copytree(run_copy / front["policies"][0]["adapter"], run_copy / left["adapter"])
    of_the_old = ("analysis.json", "dense_front.png", "samples/report/b000.webp")
    for name in of_the_old:
        (run_copy / name).touch()
    original, seen = FrontPublisher.front, []

    def publish(self, run):
        seen.extend(policy.file for policy in Front.load(run.directory.path).policies)
        original(self, run)

    monkeypatch.setattr(FrontPublisher, "front", publish)
    make_run("", f"resume_from={run_copy}", *FINISHED, "evolution.evolutionary_generations=3")
    assert seen
    front = json.loads((run_copy / "front.json").read_text())
    named = {*(policy["id"] for policy in front["policies"]), *front["dominated_on_report"]}
    assert {folder.name for folder in (run_copy / "adapters").iterdir()} == named
    assert not any((run_copy / name).exists() for name in of_the_old)


def test_a_policy_that_was_trained_again_takes_its_old_adapters_place(run_dir, caplog):
    agents = make_rig(1).agents
    old = agents.initial_policy()
    new = dataclasses.replace(old, adapter=old.adapter + 1)
    run_dir.write_adapters(agents, {"g000a0": old})
    file = run_dir.adapter_folder("g000a0") / ADAPTER_FILE
    before, front = file.stat(), {"policies": [{"id": "g000a0"}], "dominated_on_report": []}
    (run_dir.path / "front.json").write_text(json.dumps(front))
    for policy, is_same in ((old, True), (new, False)):
        again = RunDir(run_dir.path, is_new=False)
        again.write_adapters(agents, {"g000a0": policy})
        assert holds_adapter(agents, policy, file.parent)
        assert (file.stat().st_mtime_ns == before.st_mtime_ns) is is_same
        assert ("g000a0 was trained again" in caplog.text) is not is_same


def test_versions_that_differ_from_the_checkpoint_are_reported():
    now = Versions.current()
    assert now.differences(now) == []
    before = Versions(python=now.python, packages={**now.packages, "torch": "1.0"})
    assert now.differences(before)[0].startswith("torch was 1.0 and is ")
