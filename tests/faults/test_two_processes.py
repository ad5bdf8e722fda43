"""Two processes end together when one of them is stopped or killed."""

from __future__ import annotations

import signal

import pytest

from tests.support.interrupted import differences

pytestmark = pytest.mark.slow  # tests/ddpo/test_processes.py tries the same below the program


@pytest.fixture(scope="module", name="whole_of_two")
def _whole_of_two(program):
    processes = program.start_together(2, "run_name=two")
    codes = [process.wait() for process in processes]
    assert codes == [0, 0], processes[0].output + processes[1].output
    return program.folder / "logs" / "two"


def go_on(program, name):
    processes = program.start_together(2, f"run_name={name}", "resume_from=auto")
    codes = [process.wait() for process in processes]
    assert codes == [0, 0], processes[0].output + processes[1].output
    return program.folder / "logs" / name


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_to_one_process_ends_both_in_order_and_they_resume_bit_for_bit(
    program, whole_of_two, rank
):
    name = f"two-signal-{rank}"
    processes = program.start_together(2, f"run_name={name}")
    processes[0].wait_for("generation 2 of")
    processes[rank].kill(signal.SIGTERM)
    assert [process.wait() for process in processes] == [75, 75], processes[0].output
    assert "stopped by SIGTERM. Generation 1 is saved" in processes[0].output
    assert "Traceback" not in processes[0].output + processes[1].output
    assert differences(go_on(program, name), whole_of_two) == []


@pytest.mark.slow
def test_two_processes_killed_together_resume_bit_for_bit(program, whole_of_two):
    processes = program.start_together(2, "run_name=two-killed")
    processes[0].wait_for("generation 3 of")
    for process in processes:
        process.kill()
    assert [process.wait() for process in processes] == [-signal.SIGKILL] * 2
    assert differences(go_on(program, "two-killed"), whole_of_two) == []


def test_auto_reports_a_finished_run_once(program, whole_of_two):
    processes = program.start_together(2, "run_name=two", "resume_from=auto")
    assert [process.wait() for process in processes] == [0, 0]
    assert "is finished" in processes[0].output
    assert processes[1].output == ""
