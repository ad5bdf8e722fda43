"""Freed memory is kept: passes do not fault it in again."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from ddpo.speed import allocator

PROGRAM = """
import resource, sys, torch
from ddpo.speed.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    blocks = [torch.ones(2**21) for _ in range(4)]  # of 8 MB; freed together

for _ in range(2):
    work()
before = faults()
for _ in range(3):
    work()
print(faults() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
@pytest.mark.slow  # imports the package twice
def test_memory_is_faulted_in_once():
    counts = {}
    # glibc adapts the threshold to what is freed, as luck has it; fixed at its default it does not
    fixed = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    for how in ("keep", "leave"):
        command = [sys.executable, "-c", PROGRAM, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=fixed)
        counts[how] = int(done.stdout)
    assert counts["leave"] > 15_000  # pages of 4 kB
    assert counts["keep"] < 6_000


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
