"""How the C library hands out memory, for models on the CPU."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MOST_MMAP_THRESHOLD = 32 * 2**20  # that glibc accepts
_NEVER = 2**30


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for what is allocated next.

    By itself it returns large blocks to the system at once, and every UNet pass then faults its
    activations in again, page by page: a tenth of the CPU time of the small benchmark model, and as
    much memory at the peak.

    Returns:
        Whether that was possible: not where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _NEVER)
    )
