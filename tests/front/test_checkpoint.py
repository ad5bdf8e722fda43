"""Checkpoints are whole or not there."""

from __future__ import annotations

import pytest
import torch

from ddpo.advantages import PromptStatistics
from ddpo.agents import Policy
from front.checkpoint import CheckpointError, CheckpointStore


def policy(seed):
    generator = torch.Generator().manual_seed(seed)
    adapter, first, second = torch.randn(3, 20, generator=generator).unbind()
    statistics = PromptStatistics().add(["a", "b"], torch.rand(2, 2, generator=generator), 4)
    return Policy(
        adapter=adapter, exp_avg=first, exp_avg_sq=second.abs(), step=seed, statistics=statistics
    )


def commit(store, generation, names):
    for name in names:
        store.save_policy(name, policy(len(name) + generation))
    store.commit(generation, {"n": generation}, names, {"images": 10 * generation})


def test_a_policy_returns_bit_for_bit(tmp_path):
    store, original = CheckpointStore(tmp_path), policy(3)
    store.save_policy("g000a1", original)
    again = store.load_policy("g000a1")
    for name in ("adapter", "exp_avg", "exp_avg_sq"):
        assert torch.equal(getattr(again, name), getattr(original, name))
    assert again.step == 3
    assert again.statistics == original.statistics


def test_the_newest_checkpoint_is_loaded_and_the_last_two_are_kept(tmp_path):
    store = CheckpointStore(tmp_path)
    for generation in range(4):
        commit(store, generation, ["base", f"g{generation}"])
    latest = CheckpointStore(tmp_path).latest()
    assert latest.generation == 3
    assert latest.evolution == {"n": 3}
    assert latest.record == {"images": 30}
    assert sorted(p.stem for p in store.checkpoints.iterdir()) == ["00003", "00004"]
    assert sorted(p.stem for p in store.policies.iterdir()) == ["base", "g2", "g3"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "delete"])
@pytest.mark.parametrize("which", ["checkpoint", "policy"])
def test_a_damaged_file_is_named_and_the_previous_checkpoint_is_used(
    tmp_path, damage, which, caplog
):
    store = CheckpointStore(tmp_path)
    commit(store, 0, ["base", "g0"])
    commit(store, 1, ["base", "g1"])
    files = {
        "checkpoint": store.checkpoints / "00002.json",
        "policy": store.policies / "g1.safetensors",
    }
    path = files[which]
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "flip":
        data[len(data) // 2] ^= 0x80
        path.write_bytes(data)
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"")
    latest = CheckpointStore(tmp_path).latest()
    assert latest.generation == 0
    if (damage, which) != ("delete", "checkpoint"):
        assert path.name in caplog.text


def test_no_whole_checkpoint_is_an_error_that_says_why(tmp_path):
    store = CheckpointStore(tmp_path)
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        store.latest()
    commit(store, 0, ["base"])
    path = store.checkpoints / "00001.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(CheckpointError, match="has format 99; this program reads format 1"):
        store.latest()
