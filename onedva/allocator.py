"""The C library's allocator, told to keep what training frees: every step asks for the same large tensors again."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
TOP_PAD = 1 << 28  # bytes asked for beyond what is needed
NEVER = 2**31 - 1  # the largest threshold that mallopt takes


def keep_freed_memory() -> bool:
    """Large blocks come from the heap from now on, and what is freed stays there; False where this is not glibc.

    By default glibc returns every tensor of more than 32 MiB to the system, and its pages are zeroed and mapped anew at
    the next step. A process keeps the memory of its largest step. `MALLOC_…` variables of the environment do the same.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, TOP_PAD))
    return all([mallopt(option, value) for option, value in settings])
