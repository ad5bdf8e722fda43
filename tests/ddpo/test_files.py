"""Files and folders appear whole or not at all, whenever the process dies."""

from __future__ import annotations

import shutil

import pytest

from ddpo.files import new_folder, remove, sweep, write_atomic
from run.checkpoint import CheckpointStore
from tests.support.checkpoints import assert_equal, commit, policy
from tests.support.dying import Dead, Disk


def leftovers(folder):
    return [path for path in folder.rglob(".*") if path.suffix in {".tmp", ".trash"}]


def next_generation(folder):
    """The work of a run after generation 2: save the policies, then commit."""
    store = CheckpointStore(folder)
    store.latest()
    commit(store, 2, ["base", "g2"])


def test_a_checkpoint_is_whole_or_absent_at_every_point_of_its_writing(tmp_path):
    before, run = tmp_path / "before", tmp_path / "run"
    store = CheckpointStore(before)
    for generation in range(2):
        commit(store, generation, ["base", f"g{generation}"])
    died, results = True, set()
    for number in range(200):
        if not died:
            break
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(before, run)
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, die_at=number)
            try:
                next_generation(run)
                died = False
            except Dead:
                pass
        latest = CheckpointStore(run).latest()
        results.add(latest.generation)
        assert latest.search == {"n": latest.generation}
        assert_equal(latest.policies[f"g{latest.generation}"], policy(2 + latest.generation))
        next_generation(run)  # the run resumes from there, whatever files lie about
        assert CheckpointStore(run).latest().generation == 2
        assert leftovers(run) == []
    assert not died
    assert number > 20  # operations: every one was a place to die
    assert results == {1, 2}


def test_all_is_flushed_before_a_checkpoint_is_named_and_its_folder_after(tmp_path, monkeypatch):
    """The order that a power cut cannot undo."""
    store = CheckpointStore(tmp_path)
    store.save_policy("base", policy(4))
    disk = Disk(monkeypatch)
    commit(store, 0, ["base", "g0"])
    log = disk.log
    partial, final = store.checkpoints / ".00001.tmp", store.checkpoints / "00001"
    named = log.index(("rename", partial, final))
    written = [entry[1] for entry in log if entry[0] == "open"]
    assert written[-1] == partial / "manifest.json"  # last of all
    for path in written[1:]:  # the policy g0 comes first, under its own name
        last_flush = max(i for i, entry in enumerate(log) if entry == ("fsync", path))
        assert log.index(("open", path)) < last_flush < named
    assert log.index(("fsync", partial)) < named
    assert ("fsync", store.checkpoints) in log[named:]
    policy_file = store.policies / "g0.safetensors"
    stored = log.index(("replace", written[0], policy_file))
    assert ("fsync", store.policies) in log[stored:named]


@pytest.mark.parametrize("old", [None, b"old"])
def test_an_atomic_write_leaves_old_or_new_wherever_it_dies(tmp_path, old):
    died, number = True, 0
    while died:
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "file"
        if old is not None:
            path.write_bytes(old)
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, die_at=number)
            try:
                write_atomic(path, b"new content")
                died = False
            except Dead:
                pass
        assert (path.read_bytes() if path.exists() else None) in {old, b"new content"}
        sweep(folder)
        assert leftovers(folder) == []
        number += 1
    assert path.read_bytes() == b"new content"
    assert number > 3


def test_a_folder_replaces_another_as_a_whole_and_a_failure_leaves_the_old(tmp_path):
    path = tmp_path / "folder"

    def fill(*names):
        with new_folder(path) as folder:
            for name in names:
                (folder / name).write_text("content")

    fill("a")
    with pytest.raises(FileNotFoundError):
        fill("b", "no/such/folder")
    assert [child.name for child in path.iterdir()] == ["a"]
    fill("b")
    assert [child.name for child in path.iterdir()] == ["b"]
    assert [child.name for child in tmp_path.iterdir()] == ["folder"]


def test_removing_a_link_leaves_what_it_points_to(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    remove(tmp_path / "link")
    assert [child.name for child in tmp_path.iterdir()] == ["precious"]
    assert (tmp_path / "precious" / "file").exists()
