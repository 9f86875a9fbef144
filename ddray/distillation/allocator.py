"""Memory that is freed is kept for the next step, where the C library can be told so."""

from __future__ import annotations

import ctypes
import os
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3), in malloc.h
_LARGEST = 2**25  # bytes: the most that glibc takes for the second of them
_KEPT = 2**30  # bytes


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep up to 1 GiB of what this process frees, in pieces of up to 32 MiB, from now on.

    Left to itself it hands megabytes back to the system and fetches them anew, cleared page by page, thousands of times in every
    outer step. Settings of the environment win.

    Returns:
        Whether the C library was told, and agreed.

    """
    if os.name != "posix" or os.environ.keys() & {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _KEPT))
