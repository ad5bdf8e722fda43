"""kill -9, anywhere: the resumed run equals the one that was never killed, bit for bit."""

from __future__ import annotations

import random
import shutil
import signal
import time

import pytest

from tests.support.interrupted import differences

# Where a process may die while it saves generations 0 to 2 of 0..3 and publishes the front, in
# order. Which policies get an adapter is a matter of rounding.
POINTS = (
    ("rename", "*/adapters/.*.tmp"),
    ("replace", "*/.history.json.tmp"),
    ("replace", "*/.search.json.tmp"),
    ("open", "*/policies/.g001a0.safetensors.tmp"),
    ("replace", "*/policies/.g001a1.safetensors.tmp"),
    ("mkdir", "*/checkpoints/.00003.tmp"),
    ("open", "*/.00003.tmp/search.json"),
    ("open", "*/.00003.tmp/manifest.json"),
    ("rename", "*/checkpoints/.00003.tmp"),
    ("rename", "*/checkpoints/00001"),  # the new one is whole: pruning begins
    ("replace", "*/.front.json.tmp"),
    ("replace", "*/.finished.json.tmp"),
)
FEW_POINTS = (*POINTS[::3], POINTS[-2])  # tests/ddpo/test_files.py tries every operation
MANY_STARTS = 60  # about ten do


@pytest.mark.parametrize(
    ("name", "points"),
    [("killed", FEW_POINTS), pytest.param("killed-often", POINTS, marks=pytest.mark.slow)],
)
def test_a_run_killed_at_named_points_of_its_saving_equals_one_never_killed(
    program, whole, name, points
):
    missed = []
    for operation, point in points:
        process = program.start(
            f"run_name={name}",
            "resume_from=auto",
            fault="kill_at",
            operation=operation,
            pattern=point,
        )
        code = process.wait()
        if code != -signal.SIGKILL:
            missed.append((point, code))
    code, output = program.run(f"run_name={name}", "resume_from=auto")
    assert code == 0, output
    assert missed == []
    assert differences(whole.parent / name, whole) == []


@pytest.mark.slow
def test_a_run_killed_at_random_moments_equals_one_never_killed(program, whole):
    """In the first half of a run, which lasts a second on a fast machine."""
    begin = time.perf_counter()
    code, output = program.run("run_name=timed")
    whole_run = time.perf_counter() - begin
    assert code == 0, output
    moments, killed, starts = random.Random(0), 0, []
    for _ in range(6):
        seconds = moments.uniform(0.05, 0.5) * whole_run
        process = program.start("run_name=random", "resume_from=auto")
        time.sleep(seconds)
        process.kill()
        code = process.wait()
        killed += code == -signal.SIGKILL
        starts.append(f"{code} after {seconds:.2f} s: {process.output}")
    code, output = program.run("run_name=random", "resume_from=auto")
    assert code == 0, (output, starts)
    assert killed > 0, starts
    assert differences(whole.parent / "random", whole) == [], (output, starts)


@pytest.mark.slow
def test_a_run_killed_at_every_resumption_equals_one_never_killed(program, whole):
    """After random numbers of file operations, which are the same however busy the machine is."""
    run, numbers, codes, outputs = whole.parent / "often", random.Random(0), [], []
    while len(codes) < MANY_STARTS and set(codes) <= {-signal.SIGKILL}:
        process = program.start(
            "run_name=often",
            "resume_from=auto",
            fault="kill_after",
            operations=numbers.randint(0, 50),
            folder=run,
        )
        codes.append(process.wait())
        outputs.append(process.output)
    assert len(codes) > 5
    assert codes[-1] == 0, outputs
    assert differences(run, whole) == [], outputs


@pytest.mark.slow
def test_whatever_a_kill_can_leave_behind_leads_to_the_same_end(program, whole):
    """A kill between two file operations leaves what one just before the second does."""
    copies = whole.parent / "left-"
    code, output = program.run(
        "run_name=watched", fault="keep_every_state", folder=whole.parent / "watched", copies=copies
    )
    assert code == 0, output
    left = sorted(whole.parent.glob(f"{copies.name}*"))
    assert len(left) > 100
    wrong = {}
    for run in left:
        code, output = program.run(f"run_name={run.name}", "resume_from=auto")
        if wrongs := differences(run, whole) if code == 0 else [output]:
            wrong[run.name] = wrongs
        else:
            shutil.rmtree(run)
    assert wrong == {}
