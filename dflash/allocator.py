"""Keeps freed memory in the process on glibc; called once at the start of a run on a CPU."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Whether it could be done: False on other C libraries, where nothing is changed.

    By default glibc serves large blocks by mmap and gives each back to the kernel when it is freed, so that every
    training step maps its activations anew, page fault by page fault, and the kernel zeroes them again. Served from a
    heap that is never trimmed, they are reused.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version.restype = ctypes.c_char_p  # only glibc has it
        mallopt = libc.mallopt
    except (OSError, AttributeError, TypeError):
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20}
    return all(mallopt(option, value) == 1 for option, value in settings.items())
