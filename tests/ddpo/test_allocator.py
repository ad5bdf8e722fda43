"""Freed memory is kept: passes do not fault it in again."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from ddpo import allocator

PROGRAM = """
import resource, sys, torch
from ddpo.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(3):
    torch.ones(2**22)  # 16 MB; freed at once
before = faults()
for _ in range(20):
    torch.ones(2**22)
print(faults() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_memory_is_faulted_in_once():
    counts = {}
    for how in ("keep", "leave"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        counts[how] = int(done.stdout)
    assert counts["keep"] < 100
    assert counts["leave"] > 20 * counts["keep"]


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
