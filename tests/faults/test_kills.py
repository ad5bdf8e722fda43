"""kill -9, anywhere: the run that goes on equals the one that was never killed, bit for bit."""

from __future__ import annotations

import random
import signal
import time

from tests.faults.conftest import content

# Where a process may die while it saves generation 2 of 0..3, and publishes the front, in order.
POINTS = (
    ("rename", "/adapters/.g000a0.tmp"),
    ("replace", "/.history.json.tmp"),
    ("replace", "/.search.json.tmp"),
    ("open", "/policies/.g001a0.safetensors.tmp"),
    ("replace", "/policies/.g001a1.safetensors.tmp"),
    ("mkdir", "/checkpoints/.00003.tmp"),
    ("open", "/.00003.tmp/search.json"),
    ("open", "/.00003.tmp/manifest.json"),
    ("rename", "/checkpoints/.00003.tmp"),
    ("rename", "/checkpoints/00001"),  # the new one is whole: pruning begins
    ("replace", "/.front.json.tmp"),
    ("replace", "/.finished.json.tmp"),
)


def test_a_run_killed_at_every_named_point_of_its_saving_equals_one_never_killed(program, whole):
    missed = []
    for operation, part in POINTS:
        process = program.start(
            "run_name=killed", "resume_from=auto", fault="kill_at", operation=operation, part=part
        )
        code = process.wait()
        if code != -signal.SIGKILL:
            missed.append((part, code))
    code, output = program.run("run_name=killed", "resume_from=auto")
    assert code == 0, output
    assert missed == []
    assert content(whole.parent / "killed") == content(whole)


def test_a_run_killed_at_random_moments_equals_one_never_killed(program, whole):
    moments, killed = random.Random(0), 0
    for _ in range(12):
        process = program.start("run_name=random", "resume_from=auto")
        time.sleep(moments.uniform(0.2, 1.6))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    code, output = program.run("run_name=random", "resume_from=auto")
    assert code == 0, output
    assert killed > 0
    assert content(whole.parent / "random") == content(whole)
