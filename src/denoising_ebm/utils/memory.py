"""How the C library treats freed memory; without torch, since it is to be said before any work."""

from __future__ import annotations

import ctypes


def keep_freed_memory() -> bool:
    """Tell the C library to keep the memory of freed tensors for the next ones, in this process, from now on.

    By default glibc gives large blocks back to the system and gets them anew, zeroed, at every step: a tenth of the time of
    training and scoring on a CPU. The commands call this; programs that use the package may.

    Returns:
        Whether it is so: False where the C library is not glibc.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(name, value) for name, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26)))
