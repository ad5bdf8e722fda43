"""Checkpoints are whole or not there."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from front import Front
from mo_train import main
from run.checkpoint import CheckpointError, CheckpointStore
from run.command_line import read_settings
from run.records import Costs, CurvePoint
from tests.support.checkpoints import (
    VERSIONS,
    assert_equal,
    commit,
    entry,
    policy,
    reseal,
    state,
)
from tests.support.worlds import small_world

FIXTURES = Path(__file__).parent / "fixtures"
FILES = ("manifest.json", "search.json", "run.json", "g1.safetensors")


def two_checkpoints(folder):
    store = CheckpointStore(folder)
    commit(store, 0, ["base", "g0"])
    commit(store, 1, ["base", "g1"])
    return store


def find(store, name):
    """The file of the newest checkpoint with this name."""
    return next(p for p in sorted(store.checkpoints.parent.rglob(name))[::-1])


def test_a_policy_returns_bit_for_bit(tmp_path):
    store, original = CheckpointStore(tmp_path), policy(3)
    store.save_policy("g000a1", original)
    assert_equal(store.load_policy("g000a1"), original)


def test_the_newest_checkpoint_is_loaded_and_the_last_ones_are_kept(tmp_path):
    store = CheckpointStore(tmp_path)
    for generation in range(5):
        commit(store, generation, ["base", f"g{generation}"])
    latest = CheckpointStore(tmp_path).latest()
    assert (latest.generation, latest.search) == (4, {"n": 4})
    assert (latest.state, latest.versions) == (state(4), VERSIONS)
    assert_equal(latest.policies["g4"], policy(6))
    assert sorted(p.name for p in store.checkpoints.iterdir()) == ["00004", "00005"]
    assert sorted(p.stem for p in store.policies.iterdir()) == ["base", "g3", "g4"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "delete"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_previous_checkpoint_is_used(
    tmp_path, damage, name, caplog
):
    path = find(two_checkpoints(tmp_path), name)
    data = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "flip":
        for bit in range(0, 8 * len(data), 8 * len(data) // 40 + 1):  # some 40 places, any bit
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert CheckpointStore(tmp_path).latest().generation == 0
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"")
    assert CheckpointStore(tmp_path).latest().generation == 0
    assert name in caplog.text


def test_a_run_resumes_past_a_damaged_checkpoint_and_replaces_it(tmp_path):
    find(two_checkpoints(tmp_path), "search.json").write_bytes(b"")
    store = CheckpointStore(tmp_path)
    assert store.latest().generation == 0
    commit(store, 1, ["base", "g1"])
    assert CheckpointStore(tmp_path).latest().generation == 1


def test_an_older_checkpoint_that_is_damaged_does_not_stop_the_next(tmp_path, caplog):
    store = two_checkpoints(tmp_path)
    (store.checkpoints / "00002" / "manifest.json").write_bytes(b"{}")
    commit(store, 2, ["base", "g2"])
    assert "an older checkpoint is no longer whole" in caplog.text
    assert CheckpointStore(tmp_path).latest().generation == 2


def test_no_whole_checkpoint_is_an_error_that_names_what_is_wrong_with_each(tmp_path):
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        CheckpointStore(tmp_path).latest()
    two_checkpoints(tmp_path)
    (tmp_path / "policies" / "base.safetensors").unlink()
    (tmp_path / "checkpoints" / "00002" / "run.json").write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        CheckpointStore(tmp_path).latest()
    assert "run.json is damaged: 0 bytes instead of" in str(error.value)
    assert "base.safetensors is missing" in str(error.value)


def test_unknown_formats_are_refused(tmp_path):
    store = two_checkpoints(tmp_path)
    reseal(store.checkpoints / "00002" / "manifest.json", format=99)
    reseal(store.checkpoints / "00001" / "manifest.json", format=0)
    with pytest.raises(
        CheckpointError, match=r"format 99; this program reads format 1(.|\n)*format 0"
    ):
        store.latest()


def test_policies_of_format_1_are_read_for_ever():
    """Written once by the program and never again: a reader that cannot read it breaks old runs."""
    store = CheckpointStore(FIXTURES / "format_1")
    base, other = store.load_policy("base"), store.load_policy("g0")
    assert base.adapter[:2].tolist() == [-0.9414165019989014, 1.263246774673462]
    assert base.step == 4
    assert other.statistics.buffers["a"] == ((0.5484424233436584, 0.032583773136138916),)


def test_checkpoints_of_format_1_are_read_for_ever():
    """A whole run of the program as it was at commit 7aaf014, written once and never again."""
    checkpoint = CheckpointStore(FIXTURES / "format_1_run").latest()
    assert checkpoint.generation == 0
    assert [entry["generation"]["index"] for entry in checkpoint.search["generations"]] == [0]
    assert set(checkpoint.policies) == {"base", "g000a0", "g000a1"}
    assert checkpoint.policies["g000a1"].step == 4
    assert set(checkpoint.policies["base"].statistics.buffers) == {"a", "b", "c", "d"}
    state = checkpoint.state
    assert state.settings["train"]["learning_rate"] == 0.1
    assert state.calibration.scales == (2.1995305458269248, 0.004605252274632686)
    assert state.costs == Costs(train=16, selection=64, report=0, unet_rows=352)
    assert state.curve[-1] == CurvePoint(images=16, hypervolume=0.2502588836546118)
    assert state.warmup_archive == ("base", "g000a1")
    assert set(state.prompts) == {"train", "selection", "report"}
    assert state.metrics_bytes == 1334
    assert set(checkpoint.versions.packages) > {"torch", "diffusers"}


def test_a_run_begun_by_an_older_program_resumes(tmp_path, monkeypatch):
    shutil.copytree(FIXTURES / "format_1_run", tmp_path / "logs" / "begun")
    small_world(tmp_path, block_out_channels=(16, 32))  # its model
    monkeypatch.chdir(tmp_path)  # its settings name files here
    words = ("resume_from=logs/begun", "evolution.evolutionary_generations=1")
    main(read_settings([f"--config.{word}" for word in words]))
    front = Front.load(tmp_path / "logs" / "begun")
    assert front.costs.train == 2 * 16
    assert {record.parent for record in front.history} > {"base"}
    lines = (front.path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps)


@pytest.mark.parametrize("name", ["adapter", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_policy_that_is_not_finite_is_not_loaded(tmp_path, name, value, caplog):
    from safetensors.torch import load, save

    store = two_checkpoints(tmp_path)
    path, manifest = find(store, "g1.safetensors"), find(store, "manifest.json")
    data = path.read_bytes()
    record = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    tensors = load(data)
    tensors[name][7] = value
    path.write_bytes(save(tensors, record))
    entries = json.loads(manifest.read_text())["policies"]
    reseal(manifest, policies=entries | {"g1": entry(path.read_bytes())})
    assert CheckpointStore(tmp_path).latest().generation == 0
    assert f"{name} has entries that are not finite" in caplog.text


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".hidden", "a\0b", "a" * 300])
def test_names_cannot_leave_the_run_directory(tmp_path, name, caplog):
    store = two_checkpoints(tmp_path)
    with pytest.raises(ValueError, match="must be a plain name"):
        store.save_policy(name, policy(0))
    manifest = store.checkpoints / "00002" / "manifest.json"
    content = json.loads(manifest.read_text())
    for key in ("files", "policies"):
        known = next(iter(content[key].values()))
        reseal(manifest, **{key: {**content[key], name: known}})
        assert CheckpointStore(tmp_path).latest().generation == 0
    assert "must be a plain name" in caplog.text


def test_a_link_is_not_followed(tmp_path, caplog):
    store = two_checkpoints(tmp_path / "run")
    for path in (store.checkpoints / "00002", find(store, "run.json")):
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
        assert CheckpointStore(tmp_path / "run").latest().generation == 0
        path.unlink()
        (tmp_path / path.name).rename(path)
    assert caplog.text.count("symbolic link") == 2
    assert CheckpointStore(tmp_path / "run").latest().generation == 1


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_a_pickle_in_place_of_a_file_does_nothing(tmp_path, name, write):
    store = two_checkpoints(tmp_path)
    path, manifest = find(store, name), find(store, "manifest.json")
    with path.open("wb") as file:
        write(Bomb(tmp_path / "exploded"), file)
    if path != manifest:
        key, stem = ("policies", "g1") if path.suffix == ".safetensors" else ("files", name)
        entries = json.loads(manifest.read_text())[key]
        reseal(manifest, **{key: entries | {stem: entry(path.read_bytes())}})
    assert CheckpointStore(tmp_path).latest().generation == 0
    assert not (tmp_path / "exploded").exists()
    with path.open("rb") as file:  # the bomb is a real one
        (pickle.load if write is pickle.dump else _torch_load)(file)
    assert (tmp_path / "exploded").exists()


def _torch_load(file):
    return torch.load(file, weights_only=False)
