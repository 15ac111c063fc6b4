"""Keys and values of all rows, behind transformers' cache interface.

Shapes: S slots, H key-value heads, C column capacity, E head size, B rows of a forward, Q new tokens a row, T columns
attended. One request is one slot; column ``p`` of a slot belongs to position ``p`` of its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from server.engine.scheduler import Move

_SLOT_STEP = 4
_COLUMN_STEP = 64


@dataclass(frozen=True, slots=True)
class KvWindow:
    """Where the next forward writes and what it attends.

    ``slots`` are the batch's slots in order, ``columns_BQ`` the column of every new token, ``attended`` the number T of
    columns that are read.
    """

    slots: Sequence[int]
    columns_BQ: Tensor
    attended: int


class RowCache(Cache):  # type: ignore[misc]
    """Grows with what is live: slots and columns are allocated in steps, and freed when the last row leaves.

    A slot is zeroed when its row leaves: a masked column weighs 0, but 0 times a NaN left there would be NaN.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[])
        self._keys_SHCE: list[Tensor | None] = [None] * layers
        self._values_SHCE: list[Tensor | None] = [None] * layers
        self._slots = 0
        self._columns = 0
        self._attended = 0
        self._view: slice | Tensor = slice(0)
        self._index_B1: Tensor | None = None
        self._columns_BQ: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        held = [t for t in (*self._keys_SHCE, *self._values_SHCE) if t is not None]
        return sum(t.numel() * t.element_size() for t in held)

    def reserve(self, slots: int, columns: int) -> None:
        """Makes room for ``slots`` rows of ``columns`` positions; what is there stays."""
        if slots <= self._slots and columns <= self._columns:
            return
        slots, columns = _stepped(slots, self._slots, _SLOT_STEP), _stepped(columns, self._columns, _COLUMN_STEP)
        for held in (self._keys_SHCE, self._values_SHCE):
            for layer, tensor in enumerate(held):
                held[layer] = _grown(tensor, slots, columns)
        # Last: should memory run out on the way, the sizes that hold for every layer are still the old ones.
        self._slots, self._columns = slots, columns

    def rearrange(self, moves: Sequence[Move]) -> None:
        """Carries out the scheduler's moves, in order: copy, swap or clear whole slots.

        A row that was admitted but never computed has a slot without memory; there is nothing to move.
        """
        moves = [move for move in moves if max(move.source, move.target) < self._slots]
        for tensor_SHCE in (*self._keys_SHCE, *self._values_SHCE):
            if tensor_SHCE is None:
                continue
            for move in moves:
                if move.kind == "clear":
                    tensor_SHCE[move.target].zero_()
                elif move.kind == "copy":
                    tensor_SHCE[move.target] = tensor_SHCE[move.source]
                else:
                    tensor_SHCE[[move.source, move.target]] = tensor_SHCE[[move.target, move.source]]

    def release(self) -> None:
        """Frees all memory; only when no row is live."""
        self._keys_SHCE = [None] * len(self._keys_SHCE)
        self._values_SHCE = [None] * len(self._values_SHCE)
        self._slots = self._columns = 0

    def aim(self, window: KvWindow) -> None:
        """Says where the forward that follows writes and reads."""
        first, count, device = window.slots[0], len(window.slots), window.columns_BQ.device
        contiguous = list(window.slots) == list(range(first, first + count))
        # Slots in a row are read through a view; only a scattered batch (some prefills) pays for a copy.
        self._view = slice(first, first + count) if contiguous else torch.tensor(window.slots, device=device)
        self._index_B1 = torch.tensor(window.slots, device=device)[:, None]
        self._columns_BQ = window.columns_BQ
        self._attended = window.attended

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes new keys and values ``(B, H, Q, E)`` of a layer and returns what is attended, ``(B, H, T, E)``."""
        keys_SHCE, values_SHCE = self._keys_SHCE[layer_idx], self._values_SHCE[layer_idx]
        if keys_SHCE is None or values_SHCE is None:
            keys_SHCE = self._keys_SHCE[layer_idx] = _empty_like(key_states, self._slots, self._columns)
            values_SHCE = self._values_SHCE[layer_idx] = _empty_like(value_states, self._slots, self._columns)
        return self._write(keys_SHCE, key_states), self._write(values_SHCE, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - the interface asks for it
        """Columns attended in this forward, equal in every layer; positions are always passed explicitly."""
        return self._attended

    def _write(self, held_SHCE: Tensor, new_BHQE: Tensor) -> Tensor:
        held_SHCE[self._index_B1, :, self._columns_BQ] = new_BHQE.transpose(1, 2)
        return held_SHCE[self._view, :, : self._attended]


def _empty_like(states_BHQE: Tensor, slots: int, columns: int) -> Tensor:
    _, heads, _, size = states_BHQE.shape
    return states_BHQE.new_zeros(slots, heads, columns, size)


def _stepped(needed: int, held: int, step: int) -> int:
    """A size for ``needed``, with room so that growing one by one does not copy everything each time."""
    return held if needed <= held else max(-(-needed // step) * step, held * 5 // 4)


def _grown(held_SHCE: Tensor | None, slots: int, columns: int) -> Tensor | None:
    if held_SHCE is None:
        return None
    old_slots, heads, old_columns, size = held_SHCE.shape
    if slots <= old_slots and columns <= old_columns:
        return held_SHCE
    grown_SHCE = held_SHCE.new_zeros(max(slots, old_slots), heads, max(columns, old_columns), size)
    grown_SHCE[:old_slots, :, :old_columns] = held_SHCE
    return grown_SHCE
