"""Memory that can be taken now: of a GPU, or of this machine within the limit of its control group."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken now: of the GPU, or of this machine within the limit of its control group."""
    if device.type == "cuda":
        # What this process has given back, torch keeps for its next allocation.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return min(_free_of_machine(_MEMINFO.read_text().splitlines()), _free_of_group(_CGROUP))


def _free_of_machine(meminfo: Iterable[str]) -> int:
    (available,) = (line.split()[1] for line in meminfo if line.startswith("MemAvailable:"))
    return int(available) * 1024


def _free_of_group(folder: Path) -> int:
    """What the control group (version 2, as containers have it) may still take; unbounded where there is none."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return 2**63
    # Files that were read count as used until somebody needs the room.
    reclaimable = sum(int(counts.get(name, 0)) for name in ("inactive_file", "active_file"))
    return 2**63 if limit == "max" else max(int(limit) - used + reclaimable, 0)
