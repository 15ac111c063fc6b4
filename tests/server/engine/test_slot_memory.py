"""Memory that grows and shrinks by slots: what it holds, what it costs, and what happens where there is none."""

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from server.engine.slot_memory import CopiedSlots, ReservedSlots, slot_memory

LAYERS, SLOT_HCX = 2, (3, 5, 70)
CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="pages are reserved on Linux only")


def copied(dtype=torch.float64):
    return CopiedSlots(LAYERS, SLOT_HCX, dtype, CPU)


def reserved(dtype=torch.float64):
    return ReservedSlots(LAYERS, SLOT_HCX, dtype)


def numbers(slots: int) -> torch.Tensor:
    """Different in every place."""
    per_layer = torch.arange(1.0, 1 + slots * 3 * 5 * 70, dtype=torch.float64).view(slots, *SLOT_HCX)
    return torch.stack([per_layer, -per_layer])


@pytest.mark.parametrize("make", [copied, pytest.param(reserved, marks=linux)])
@pytest.mark.parametrize("sizes", [(3, 9, 2, 9), (64, 65, 300, 64, 1), (1, 0, 70)])
def test_slots_that_stay_keep_what_they_hold_and_others_are_zero(make, sizes):
    memory = make()
    held = memory.resize(0, 0)
    for slots in sizes:
        used = min(slots, held.shape[1])
        held[:, used:] = 0  # the pool sees to it that free slots are empty
        held = memory.resize(slots, used)
        assert held.shape == (LAYERS, slots, *SLOT_HCX)
        assert torch.equal(held[:, :used], numbers(used))
        assert not held[:, used:].any()
        held[:] = numbers(slots)


@linux
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_growing_within_the_reserve_moves_nothing(dtype):
    memory = reserved(dtype)
    place = memory.resize(1, 0).data_ptr()
    assert [memory.resize(slots, 1).data_ptr() for slots in (2, 30, 64)] == [place] * 3
    assert memory.resize(65, 64).data_ptr() != place
    assert memory.resize(65, 64).dtype == dtype


def resident_bytes(address: int) -> int:
    """Of the mapping that holds ``address``."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            start, stop = (int(bound, 16) for bound in first.split("-"))
            inside = start <= address < stop
        elif inside and first == "Rss:":
            return int(rest[0]) * 1024
    raise AssertionError("no mapping holds this address")


@linux
def test_only_slots_in_use_take_memory():
    mib = 2**20
    memory = ReservedSlots(4, (1, mib // 4, 1), torch.float32)
    held = memory.resize(64, 0)  # 512 MiB of addresses, 4 MiB a slot
    before = resident_bytes(held.data_ptr())
    held[:, :16] = 1
    assert 64 * mib <= resident_bytes(held.data_ptr()) - before < 66 * mib
    held[:, 2:16] = 0
    memory.resize(2, 2)
    assert resident_bytes(held.data_ptr()) - before < 10 * mib


@linux
def test_pages_that_the_system_keeps_are_no_failure():
    memory = reserved()
    memory.resize(9, 0)

    def locked(*_where):
        raise OSError("locked")

    memory._pages = SimpleNamespace(madvise=locked)
    assert memory.resize(1, 1).shape[1] == 1


@linux
def test_where_addresses_are_short_just_the_slots_are_asked_for():
    asked = []

    def short(_file, size, **_flags):
        asked.append(size)
        raise OSError("no addresses")

    memory = reserved()
    held = memory.resize(2, 0)
    held[:] = numbers(2)
    memory.resize(64, 2)
    with patch("server.engine.slot_memory.mmap.mmap", short), pytest.raises(torch.OutOfMemoryError, match="keys"):
        memory.resize(100, 2)
    slot_bytes = LAYERS * 3 * 5 * 70 * 8
    assert asked == [200 * slot_bytes, 100 * slot_bytes]
    assert torch.equal(memory.resize(2, 2), numbers(2)), "nothing has changed"


def test_other_devices_and_systems_copy(monkeypatch):
    assert isinstance(slot_memory(LAYERS, SLOT_HCX, torch.float32, torch.device("meta")), CopiedSlots)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert isinstance(slot_memory(LAYERS, SLOT_HCX, torch.float32, CPU), CopiedSlots)
