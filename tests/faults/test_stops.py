"""Signals, kills, a second process in the same directory: the program in processes of its own."""

from __future__ import annotations

import signal

import pytest

from tests.support.interrupted import differences


@pytest.mark.parametrize(
    "name",
    ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGUSR1", "SIGINT"))],
)
def test_a_signal_ends_the_run_in_order_and_it_resumes_bit_for_bit(program, whole, name):
    run = f"signal-{name}"
    process = program.start(f"run_name={run}")
    process.wait_for("generation 2 of")
    process.kill(getattr(signal, name))
    assert process.wait() == 75, process.output
    assert f"stopped by {name}. Generation" in process.output
    assert "is saved; what was done since is done again" in process.output
    assert "Traceback" not in process.output
    code, output = program.run(f"run_name={run}", "resume_from=auto")
    assert code == 0, output
    assert differences(whole.parent / run, whole) == []


def test_a_second_signal_ends_the_run_immediately(program):
    process = program.start("run_name=twice", fault="never_reach_a_safe_point")
    process.wait_for("stuck")
    process.kill(signal.SIGTERM)
    process.wait_for("SIGTERM: stopping after this optimiser step")
    process.kill(signal.SIGINT)
    assert process.wait() == 128 + signal.SIGINT
    assert "SIGINT: stopping immediately" in process.output


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_afresh(program, whole):
    process = program.start("run_name=early", fault="signal_myself_at", words="evaluating", count=0)
    assert process.wait() == 75, process.output
    assert "Nothing was saved yet: start the run again." in process.output
    code, output = program.run("run_name=early")
    assert code == 0, output
    assert differences(whole.parent / "early", whole) == []


def test_auto_on_a_finished_run_says_so_and_is_done(program, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    code, output = program.run("run_name=whole", "resume_from=auto")
    assert (code, output.count("\n")) == (0, 1)
    assert "whole is finished; raise evolution.evolutionary_generations to continue" in output
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_two_runs_in_one_directory_are_one_too_many(program):
    first = program.start("run_name=locked", fault="never_reach_a_safe_point")
    first.wait_for("stuck")
    code, output = program.run("run_name=locked")
    assert code == 1
    assert f"locked is in use by process {first.pid} on " in output
    first.kill()
    assert first.wait() == -signal.SIGKILL
    process = program.start("run_name=locked", fault="never_reach_a_safe_point")
    process.wait_for("stuck")  # the lock died with its owner
    process.kill()
    process.wait()
