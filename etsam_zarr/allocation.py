"""Keeps the memory that the model frees, for what it takes next."""

from __future__ import annotations

import ctypes
import platform

# From malloc.h of the GNU C library.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_GIB = 2**30


def keep_freed_memory() -> None:
    """Let the GNU C library keep freed memory in one place instead of giving it back; elsewhere do nothing.

    A model on a CPU takes and frees the same tens of megabytes in every layer. Given back each time, they are mapped
    and zeroed anew page by page: measured with Hiera-T at 512 pixels, about 12 000 pages and 4 % of a slice's time.
    One place for all threads keeps each of them from holding on to freed memory of its own. It holds for the process.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, _GIB)
    library.mallopt(_TRIM_THRESHOLD, _GIB)
    library.mallopt(_ARENA_MAX, 1)
