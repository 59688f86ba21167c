"""The allocator's settings that benchmarks share."""

from __future__ import annotations

import os
import sys

SETTINGS = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}


def keep_memory() -> None:
    """Starts the script anew with a glibc that keeps large blocks.

    By default it returns them to the system after each use, and page faults then take as long as
    the arithmetic. Settings of the caller's own stay.
    """
    if sys.platform == "linux" and not SETTINGS.keys() & os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SETTINGS})
