"""A disk that takes no more: one clear message, and the last checkpoint stays as it was."""

from __future__ import annotations

import subprocess

import pytest

from run.checkpoint import CheckpointStore
from tests.support.interrupted import content, differences

pytestmark = pytest.mark.slow


def test_a_full_disk_costs_checkpoints_but_not_the_run(program, whole):
    code, output = program.run("run_name=full", fault="fill_disk_during", generations=[1, 2])
    assert code == 0, output
    warnings = [line for line in output.splitlines() if "could not be saved" in line]
    assert [line.split(";")[0] for line in warnings] == [
        f"warning: generation {generation} could not be saved ([Errno 27] File too large)"
        for generation in (1, 2)
    ]
    assert "ends if 1 more generations in a row cannot be saved. The last checkpoint is" in output
    assert "Traceback" not in output
    saved, expected = content(whole.parent / "full"), content(whole)
    for name in expected:
        if not name.startswith("policies/"):  # another checkpoint is the last but one
            assert saved[name] == expected[name]


def test_too_many_failures_in_a_row_end_the_run_and_the_last_checkpoint_is_whole(program, whole):
    code, output = program.run("run_name=fuller", fault="fill_disk_during", generations=[1, 2, 3])
    assert code == 1
    assert "generation 3 could not be saved ([Errno 27] File too large): 3 failures in a" in output
    assert "Generation 0 is saved; what was done since is done again" in output
    assert "Traceback" not in output
    run = whole.parent / "fuller"
    assert CheckpointStore(run).latest().generation == 0
    assert not list(run.rglob(".*.tmp"))  # half files would fill the disk further
    code, output = program.run("run_name=fuller", "resume_from=auto")
    assert code == 0, output
    assert differences(run, whole) == []


def test_a_disk_that_takes_no_policy_at_all_ends_the_run_with_a_message(program):
    code, output = program.run("run_name=tiny", fault="limit_file_size", kilobytes=4)
    assert code == 1
    assert "File too large" in output
    assert "Nothing was saved yet: start the run again." in output
    assert "Traceback" not in output


def test_a_full_file_system(program, whole, tmp_path):
    """A disk that is really full, where a small one may be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(tmp_path)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        code, output = program.run(f"logdir={tmp_path}", "run_name=small")
        assert code == 1
        assert "No space left on device" in output
        assert "Traceback" not in output
        latest = CheckpointStore(tmp_path / "small").latest()
        assert f"Generation {latest.generation} is saved" in output
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_out_of_memory_names_the_settings_to_lower_and_harms_nothing(program, whole):
    code, output = program.run("run_name=memory", fault="run_out_of_memory_in", generation=2)
    assert code == 1
    assert "out of memory: " in output
    assert "Lower train.rows_per_pass first" in output
    assert "Generation 1 is saved" in output
    assert "Traceback" not in output
    code, output = program.run(
        "run_name=memory", "resume_from=auto", "train.rows_per_pass=4", "sample.rows_per_pass=4"
    )
    assert code == 0, output
    assert "since the run began: train.rows_per_pass was 128 and is 4 now; results stay" in output


def test_a_disk_that_is_full_when_the_front_is_published_costs_nothing_but_time(program, whole):
    code, output = program.run("run_name=last", fault="fill_disk_while_publishing")
    assert code == 1
    assert "File too large" in output
    assert "Generation 3 is saved" in output
    assert "Traceback" not in output
    code, output = program.run("run_name=last", "resume_from=auto")
    assert code == 0, output
    assert differences(whole.parent / "last", whole) == []


def test_a_last_generation_that_cannot_be_saved_is_not_published(program, whole):
    code, output = program.run("run_name=late", fault="fill_disk_during", generations=[3])
    assert code == 1
    assert "File too large" in output
    assert "Generation 2 is saved" in output
    assert "Traceback" not in output
    assert not (whole.parent / "late" / "front.json").exists()
    code, output = program.run("run_name=late", "resume_from=auto")
    assert code == 0, output
    assert differences(whole.parent / "late", whole) == []
