"""Decides at start how much memory keys, values and reusable prefixes may take, from what is free on the device."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from server.types import MemoryPlan

_KV_SHARE = {"cpu": 0.4, "cuda": 0.6}
"""Of the memory that is free once the weights are there. Pools take up to half more than was promised while they grow;
the rest is for activations, artifacts and other processes."""

_PREFIX_SHARE = 0.1
_PREFIX_MOST = {"cpu": 512 * 2**20, "cuda": 8 * 2**30}

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def plan_memory(
    weights: int, row_at_most: int, max_batch: int, free: int, device: str, kv: int | None, prefixes: int | None
) -> MemoryPlan:
    """``kv`` and ``prefixes`` as the operator set them (bytes), or shares of what is ``free`` where that is None.

    Never more than ``max_batch`` rows of ``row_at_most`` bytes are planned for.
    """
    if prefixes is None:
        prefixes = min(int(free * _PREFIX_SHARE), _PREFIX_MOST[device])
    if kv is None:
        kv = min(max_batch * row_at_most, int((free - prefixes) * _KV_SHARE[device]))
    return MemoryPlan(weights, kv, prefixes)


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken now: of the GPU, or of this machine within the limit of its control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_free_of_machine(_MEMINFO.read_text().splitlines()), _free_of_group(_CGROUP))


def _free_of_machine(meminfo: Iterable[str]) -> int:
    (available,) = (line.split()[1] for line in meminfo if line.startswith("MemAvailable:"))
    return int(available) * 1024


def _free_of_group(folder: Path) -> int:
    """What the control group (version 2, as containers have it) may still take; unbounded where there is none."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except OSError:
        return 2**63
    return 2**63 if limit == "max" else max(int(limit) - used, 0)
