"""Keys and values of all rows.

A prompt that is being read has memory of its own (:class:`PromptKv`). A row that decodes has a :class:`Slot` in the
:class:`Pool` of its length class, and moves to the next class when it outgrows it: a decode step reads each pool
through one view, and no row pays for a longer one. Layers with a sliding window keep a ring of that many columns.

Shapes: L layers of one kind, S slots, H key-value heads, C columns, E key and F value head size, P tokens of a prompt.
Column ``p % C`` of a slot belongs to position ``p`` of its text. Columns that no position owns are zero: a masked
column weighs 0, but 0 times a NaN left there would be NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from server.engine.slot_memory import slot_memory

if TYPE_CHECKING:
    from server.engine.row import Row
    from server.interventions.gates import GateMark

_SMALLEST_CLASS = 64
_SPARE_SLOTS = 2


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a layer keeps for each token, and for how many of the last tokens (``window``; None: for all)."""

    heads: int
    key_size: int
    value_size: int
    window: int | None
    dtype: torch.dtype

    def columns(self, tokens: int) -> int:
        """Columns that a text of ``tokens`` tokens takes."""
        return tokens if self.window is None else min(tokens, self.window)

    @property
    def token_bytes(self) -> int:
        """Bytes of one column."""
        return self.heads * (self.key_size + self.value_size) * self.dtype.itemsize


def capacity_for(tokens: int, context: int) -> int:
    """Columns of the length class that holds ``tokens``: powers of two, and at last the whole context."""
    return min(max(_SMALLEST_CLASS, 1 << (tokens - 1).bit_length()), max(context, tokens))


def row_bytes(shapes: Sequence[LayerShape], tokens: int, context: int) -> int:
    """Bytes of keys and values that a row of ``tokens`` tokens takes when it is complete."""
    capacity = capacity_for(tokens, context)
    return sum(shape.columns(capacity) * shape.token_bytes for shape in shapes)


@dataclass(eq=False, slots=True)
class PromptKv:
    """Keys ``(L, H, P, E)`` and values ``(L, H, P, F)`` of one prompt, a pair for each kind of layer.

    ``hidden_PD`` are the outputs of some layers, before any intervention there, for requests that resume above them.
    ``gates_P`` are the states of gates after each position.
    """

    keys: list[Tensor]
    values: list[Tensor]
    hidden_PD: dict[int, Tensor] = field(default_factory=dict)
    gates_P: dict[GateMark, Tensor] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Block:
    """Keys and values of a few positions, as in :class:`PromptKv`, kept for later prompts."""

    keys: list[Tensor]
    values: list[Tensor]
    hidden_PD: dict[int, Tensor] = field(default_factory=dict)
    gates_P: dict[GateMark, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = (*self.keys, *self.values, *self.hidden_PD.values(), *self.gates_P.values())
        return sum(t.numel() * t.element_size() for t in held)


@dataclass(eq=False, slots=True)
class Slot:
    """The place of a decoding row in its pool."""

    row: Row
    pool: Pool
    index: int


class Pool:
    """The rows of one length class: slots ``0 .. len(slots)`` are taken, without gaps.

    ``keys[kind]`` is ``(L, S, H, C, E)`` and ``values[kind]`` is ``(L, S, H, C, F)``.
    """

    def __init__(
        self, kinds: Sequence[tuple[LayerShape, int]], capacity: int, device: torch.device, fixed_slots: int = 0
    ) -> None:
        self.capacity = capacity
        self.slots: list[Slot] = []
        self._fixed_slots = fixed_slots
        self.columns = [shape.columns(capacity) for shape, _ in kinds]
        sizes = [(shape, layers, shape.columns(capacity)) for shape, layers in kinds]
        self._key_memory = [slot_memory(n, (s.heads, c, s.key_size), s.dtype, device) for s, n, c in sizes]
        self._value_memory = [slot_memory(n, (s.heads, c, s.value_size), s.dtype, device) for s, n, c in sizes]
        self.keys = [memory.resize(fixed_slots, 0) for memory in self._key_memory]
        self.values = [memory.resize(fixed_slots, 0) for memory in self._value_memory]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def add(self, row: Row) -> Slot:
        """Takes the next slot, empty."""
        if len(self.slots) == self._room:
            try:
                self._resize(len(self.slots) + 1 + max(_SPARE_SLOTS, len(self.slots) // 8))
            except torch.OutOfMemoryError:
                self._shrink()
                raise
        slot = Slot(row, self, len(self.slots))
        self.slots.append(slot)
        return slot

    def remove(self, slot: Slot) -> None:
        """Gives a slot back: the last one moves into its place, and what it held is overwritten or zeroed."""
        last = self.slots.pop()
        for held in (*self.keys, *self.values):
            if last is not slot:
                held[:, slot.index] = held[:, last.index]
            held[:, last.index] = 0
        if last is not slot:
            last.index = slot.index
            self.slots[slot.index] = last
        self._shrink()

    @property
    def _room(self) -> int:
        """Slots that every tensor has: memory may have run out while they were resized one after another."""
        return min(held.shape[1] for held in (*self.keys, *self.values))

    def _shrink(self) -> None:
        if self._fixed_slots:
            return
        if self._room > 1.5 * len(self.slots) + 2 * _SPARE_SLOTS or not self.slots:
            # A row must be able to leave where memory has run out; the next one to leave tries again.
            with suppress(torch.OutOfMemoryError):
                self._resize(len(self.slots))

    def _resize(self, slots: int) -> None:
        for tensors, memories in ((self.keys, self._key_memory), (self.values, self._value_memory)):
            for kind, memory in enumerate(memories):
                kept = min(slots, tensors[kind].shape[1], len(self.slots))
                tensors[kind] = memory.resize(slots, kept)


class KvCache:
    """Memory for the keys and values of all rows of one model with layers of ``shapes``.

    With ``fixed_slots`` there is one pool of so many slots of ``context`` columns, which never moves.
    """

    def __init__(self, shapes: Sequence[LayerShape], context: int, device: torch.device, fixed_slots: int = 0) -> None:
        self.kinds = [(shape, shapes.count(shape)) for shape in dict.fromkeys(shapes)]
        self._context = context
        self.device = device
        self._fixed_slots = fixed_slots
        self._pools: dict[int, Pool] = {}
        order = [shape for shape, _ in self.kinds]
        self.place_of_layer = [(order.index(s), shapes[:layer].count(s)) for layer, s in enumerate(shapes)]
        """For each layer its kind, and its place among the layers of that kind."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated for rows that decode."""
        return sum(pool.nbytes for pool in self._pools.values())

    @property
    def pools(self) -> list[Pool]:
        """Pools that hold rows, from the shortest."""
        return [pool for _, pool in sorted(self._pools.items()) if pool.slots]

    def row_bytes(self, tokens: int) -> int:
        """Bytes that a row of ``tokens`` tokens takes when it is complete."""
        shapes = [shape for shape, layers in self.kinds for _ in range(layers)]
        return row_bytes(shapes, self._context if self._fixed_slots else tokens, self._context)

    def begin(self, tokens: int) -> PromptKv:
        """Memory for a prompt of ``tokens`` tokens."""
        return PromptKv(
            [self._new(layers, shape, tokens, shape.key_size) for shape, layers in self.kinds],
            [self._new(layers, shape, tokens, shape.value_size) for shape, layers in self.kinds],
        )

    def place(self, row: Row, prompt: PromptKv, computed: int) -> Slot:
        """Moves the first ``computed`` positions of a prompt that has been read to a slot with room for one more."""
        with self._added(row, computed + 1) as slot:
            for held, read in zip((*slot.pool.keys, *slot.pool.values), (*prompt.keys, *prompt.values), strict=True):
                columns = held.shape[3]
                # The last ones that fit, position p in column p % columns: a ring is written in two pieces.
                first = max(computed - columns, 0)
                turn = first % columns
                later = min(computed, first + columns - turn)
                held[:, slot.index, :, turn : turn + later - first] = read[:, :, first:later]
                held[:, slot.index, :, : computed - later] = read[:, :, later:computed]
        return slot

    def widen(self, slot: Slot, computed: int) -> Slot:
        """The slot itself, or one in a longer class where it has no room for position ``computed``."""
        if computed < slot.pool.capacity:
            return slot
        with self._added(slot.row, computed + 1) as wider:
            pools = ((*pool.keys, *pool.values) for pool in (wider.pool, slot.pool))
            for new, old in zip(*pools, strict=True):
                new[:, wider.index, :, : old.shape[3]] = old[:, slot.index]
        slot.pool.remove(slot)
        return wider

    def load(self, prompt: PromptKv, start: int, block: Block, layers: int) -> None:
        """Copies the lowest ``layers`` of a block to positions ``start ..`` of a prompt."""
        known = Counter(kind for kind, _ in self.place_of_layer[:layers])
        for kind, count in known.items():
            stop = start + block.keys[kind].shape[2]
            prompt.keys[kind][:count, :, start:stop] = block.keys[kind][:count]
            prompt.values[kind][:count, :, start:stop] = block.values[kind][:count]

    def block(self, kv: PromptKv | Slot, start: int, stop: int) -> Block:
        """A copy of positions ``start .. stop``; of a slot only where no layer has a window."""
        if isinstance(kv, Slot):
            pool, index = kv.pool, kv.index
            return Block(
                [keys[:, index, :, start:stop].clone() for keys in pool.keys],
                [values[:, index, :, start:stop].clone() for values in pool.values],
            )
        return Block(
            [keys[:, :, start:stop].clone() for keys in kv.keys],
            [values[:, :, start:stop].clone() for values in kv.values],
            {layer: hidden_PD[start:stop].clone() for layer, hidden_PD in kv.hidden_PD.items()},
            {mark: left_P[start:stop].clone() for mark, left_P in kv.gates_P.items()},
        )

    @contextmanager
    def _added(self, row: Row, tokens: int) -> Iterator[Slot]:
        """A slot for ``tokens`` tokens, to be filled within the block; given back should that fail."""
        slot = self._pool(tokens).add(row)
        try:
            yield slot
        except BaseException:
            slot.pool.remove(slot)
            raise

    def _pool(self, tokens: int) -> Pool:
        capacity = self._context if self._fixed_slots else capacity_for(tokens, self._context)
        if capacity not in self._pools:
            self._pools[capacity] = Pool(self.kinds, capacity, self.device, self._fixed_slots)
        return self._pools[capacity]

    def _new(self, layers: int, shape: LayerShape, tokens: int, size: int) -> Tensor:
        return torch.empty(layers, shape.heads, tokens, size, dtype=shape.dtype, device=self.device)
