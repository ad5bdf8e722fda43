"""Settings of the C library's memory allocator, for models on the CPU."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MOST_MMAP_THRESHOLD = 32 * 2**20  # the largest that glibc accepts
_NEVER = 2**30


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for later allocations.

    By default glibc returns large blocks to the system immediately. Every UNet pass then gets its
    activations back page by page, through page faults. They cost a tenth of the CPU time of the
    small benchmark model. Peak memory is the same.

    Returns:
        Whether that was possible; it is not without glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _NEVER)
    )
