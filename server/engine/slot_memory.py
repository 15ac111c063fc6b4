"""Memory of a pool's keys or values that grows and shrinks by whole slots.

Shapes: L layers of one kind, S slots, H key-value heads, C columns, X key or value head size.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

_SLOTS_AT_FIRST = 64
_MAP_NORESERVE = 0x4000
"""Linux on x86 and ARM; Python has no name for it yet. Addresses then do not count as memory that was promised."""


class CopiedSlots:
    """Slots ``(L, S, H, C, X)`` in one tensor, which is copied whenever their number changes. At first there are none.

    What is beyond the slots in use has to be zero.
    """

    def __init__(self, layers: int, slot_HCX: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self._held_LSHCX = torch.zeros(layers, 0, *slot_HCX, dtype=dtype, device=device)

    def resize(self, slots: int, kept: int) -> Tensor:
        """As many slots, zero but for the first ``kept``. Raises OutOfMemoryError, and then nothing has changed."""
        old_LSHCX = self._held_LSHCX
        new_LSHCX = old_LSHCX.new_zeros(old_LSHCX.shape[0], slots, *old_LSHCX.shape[2:])
        new_LSHCX[:, :kept] = old_LSHCX[:, :kept]
        self._held_LSHCX = new_LSHCX
        return new_LSHCX


class ReservedSlots:
    """The same on a CPU under Linux, without copies: addresses for more slots than there are.

    The system gives a page of them when it is first written, as zeros, and has those back that no slot needs.
    """

    def __init__(self, layers: int, slot_HCX: Sequence[int], dtype: torch.dtype) -> None:
        self._slot_bytes = math.prod(slot_HCX) * dtype.itemsize
        self._pages: mmap.mmap | None = None
        self._held_LSHCX = torch.zeros(layers, 0, *slot_HCX, dtype=dtype)
        self._slots = 0

    def resize(self, slots: int, kept: int) -> Tensor:
        """As :meth:`CopiedSlots.resize`; copies only where the addresses were too few."""
        if slots > self._held_LSHCX.shape[1]:
            pages, held_LSHCX = self._reserve(slots)
            held_LSHCX[:, :kept] = self._held_LSHCX[:, :kept]
            self._pages, self._held_LSHCX = pages, held_LSHCX
        elif slots < self._slots:
            self._give_back(slots)
        self._slots = slots
        return self._held_LSHCX[:, :slots]

    def _reserve(self, slots: int) -> tuple[mmap.mmap, Tensor]:
        layers, _, *slot_HCX = self._held_LSHCX.shape
        for reserved in (max(2 * slots, _SLOTS_AT_FIRST), slots):
            try:
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
                pages = mmap.mmap(-1, layers * reserved * self._slot_bytes, flags=flags)
            except OSError:  # a limit on addresses, or a system that promises no more memory than it has
                continue
            with suppress(OSError):  # a kernel without them; with them one slot would take 2 MiB in every layer
                pages.madvise(mmap.MADV_NOHUGEPAGE)
            return pages, torch.frombuffer(pages, dtype=self._held_LSHCX.dtype).view(layers, reserved, *slot_HCX)
        raise torch.OutOfMemoryError(f"no memory for {layers * slots * self._slot_bytes} bytes of keys or values")

    def _give_back(self, slots: int) -> None:
        """Lets go of the whole pages behind the first ``slots`` slots of every layer."""
        assert self._pages is not None
        layers, reserved = self._held_LSHCX.shape[:2]
        for layer in range(layers):
            start, stop = ((layer * reserved + slot) * self._slot_bytes for slot in (slots, self._slots))
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            length = stop // mmap.PAGESIZE * mmap.PAGESIZE - first
            if length > 0:
                with suppress(OSError):  # locked pages stay; they are empty, so that is only memory
                    self._pages.madvise(mmap.MADV_DONTNEED, first, length)


SlotMemory = CopiedSlots | ReservedSlots


def slot_memory(layers: int, slot_HCX: Sequence[int], dtype: torch.dtype, device: torch.device) -> SlotMemory:
    """The kind that is best on ``device`` and this system, without slots yet."""
    if device.type == "cpu" and sys.platform == "linux":
        return ReservedSlots(layers, slot_HCX, dtype)
    return CopiedSlots(layers, slot_HCX, dtype, device)
