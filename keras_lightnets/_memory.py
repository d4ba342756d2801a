"""Memory that training frees in one step and needs again in the next."""

import ctypes
import os
import sys

# Parameters of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_memory() -> bool:
    """Let this process keep the memory it frees; training on a CPU gets faster.

    TensorFlow allocates the maps of each step anew. glibc takes blocks above 32 MiB
    from the kernel and gives them back at once, so every step the kernel clears the
    same pages again: of a step with large maps that can be more than half of the time.
    From here on freed blocks stay with the process, up to 2 GiB at the end of its heap.

    Training with `tasks` does this by itself on the CPU. Call it before `fit` in a
    program of your own. It is left to the user where a variable MALLOC_... is set.

    Returns:
        Whether it was done: True on Linux with glibc.

    Example:
        >>> keep_memory() in (True, False)
        True
    """
    if not sys.platform.startswith("linux"):
        return False
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    values = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 * 2**20}
    return all([mallopt(key, value) == 1 for key, value in values.items()])
