"""Decides at start how much memory keys, values and reusable prefixes may take, from what is free on the device."""

from __future__ import annotations

from server.types import MemoryPlan

_KV_SHARE = {"cpu": 0.4, "cuda": 0.6}
"""Of the memory that is free once the weights are there. Pools take up to half more than was promised while they grow;
the rest is for activations, artifacts and other processes."""

_PREFIX_SHARE = 0.1
_PREFIX_MOST = {"cpu": 512 * 2**20, "cuda": 8 * 2**30}


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
