"""Memory of this process as Linux counts it."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path


def resident_mib(field: str = "VmRSS") -> float:
    """Resident memory now, or with ``VmHWM`` its peak since :func:`forget_peak`."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def forget_peak() -> None:
    """Starts the peak anew (man 5 proc, clear_refs), without what the allocator keeps of the work before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
