"""Freed memory is kept: passes do not fault it in again."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from ddpo.speed import allocator

PROGRAM = """
import ctypes, resource, runpy, sys

libc, size = ctypes.CDLL(None), 2**23

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def block():  # as torch allocates a tensor of 8 MB; numpy asks for large pages
    address = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(address), 64, ctypes.c_size_t(size)) == 0
    libc.memset(address, 1, ctypes.c_size_t(size))
    return address

def work():
    for address in [block() for _ in range(4)]:
        libc.free(address)

how, module = sys.argv[1:]
if how == "keep":
    assert runpy.run_path(module)["keep_freed_memory"]()  # its package takes seconds to import
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
        command = [sys.executable, "-c", PROGRAM, how, allocator.__file__]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=fixed)
        counts[how] = int(done.stdout)
    assert counts["leave"] > 15_000  # pages of 4 kB
    assert counts["keep"] < 6_000


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
