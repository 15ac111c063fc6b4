"""Where the tokens of one packed forward belong: which row, which position, which keys and values they read.

Shapes: N packed tokens, n rows of a group, H key-value heads, E key and F value head size, P tokens of a chunk, S
slots, C columns of a slot, T columns attended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from server.engine.kv import KvCache, Pool, PromptKv, Slot

if TYPE_CHECKING:
    from server.engine.row import Row
    from server.engine.scheduler import Batch


_COLUMN_STEP = 32


@dataclass(frozen=True, slots=True)
class Reach:
    """What the rows of a group write and read in layers of one kind: ``mask_n1T`` is None where all of T is read."""

    columns_n: Tensor
    attended: int
    mask_n1T: Tensor | None


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """All rows of one pool, one token each, in the order of their slots."""

    tokens: slice
    pool: Pool
    places: Sequence[tuple[int, int]]
    rows_n: Tensor
    reach: Sequence[Reach]

    def write(self, layer: int, key_HnE: Tensor, value_HnF: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keeps a layer's new keys and values; returns what is attended: ``(n, H, T, E)``, ``(n, H, T, F)``, mask."""
        kind, place = self.places[layer]
        reach, count = self.reach[kind], len(self.rows_n)
        keys_SHCE, values_SHCF = self.pool.keys[kind][place], self.pool.values[kind][place]
        keys_SHCE[self.rows_n, :, reach.columns_n] = key_HnE.transpose(0, 1)
        values_SHCF[self.rows_n, :, reach.columns_n] = value_HnF.transpose(0, 1)
        return keys_SHCE[:count, :, : reach.attended], values_SHCF[:count, :, : reach.attended], reach.mask_n1T


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """Chunks of prompts: positions ``start .. start + length`` of each. More than one only at the very beginning."""

    tokens: slice
    prompts: Sequence[PromptKv]
    start: int
    length: int
    places: Sequence[tuple[int, int]]
    first_read: Sequence[int]
    mask_PT: Sequence[Tensor | None]

    def write(self, layer: int, key_HNE: Tensor, value_HNF: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keeps a layer's new keys and values; returns what is attended: ``(n, H, T, E)``, ``(n, H, T, F)``, mask."""
        kind, place = self.places[layer]
        stop = self.start + self.length
        for i, prompt in enumerate(self.prompts):
            chunk = slice(i * self.length, (i + 1) * self.length)
            prompt.keys[kind][place, :, self.start : stop] = key_HNE[:, chunk]
            prompt.values[kind][place, :, self.start : stop] = value_HNF[:, chunk]
        if self.start == 0:
            shape = (len(self.prompts), self.length)
            key_nHTE, value_nHTF = (torch.unflatten(x, 1, shape).transpose(0, 1) for x in (key_HNE, value_HNF))
            return key_nHTE, value_nHTF, self.mask_PT[kind]
        read = slice(self.first_read[kind], stop)
        (prompt,) = self.prompts
        key_1HTE, value_1HTF = prompt.keys[kind][place, None, :, read], prompt.values[kind][place, None, :, read]
        return key_1HTE, value_1HTF, self.mask_PT[kind]


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Rows in the order in which their tokens are packed, with the number of tokens of each."""

    rows: tuple[Row, ...]
    counts: tuple[int, ...]
    skipped: int
    decode: tuple[DecodeGroup, ...]
    prompts: tuple[PromptGroup, ...]

    @property
    def firsts(self) -> list[int]:
        """Number of each row's first token."""
        return list(accumulate(self.counts, initial=0))[:-1]

    @classmethod
    def build(cls, batch: Batch, cache: KvCache, device: torch.device) -> StepLayout:
        """Gives every row of the batch its memory, and orders the tokens so that each group is one slice."""
        place_rows(batch, cache)
        reading = [(row, n) for row, n in zip(batch.rows, batch.counts, strict=True) if row.state != "decode"]
        decoding = len(batch.rows) - len(reading)
        pools = cache.pools if decoding else []
        rows = [slot.row for pool in pools for slot in pool.slots]
        assert len(rows) == decoding, "every row that decodes takes part in every step"
        decode: list[DecodeGroup] = []
        for pool in pools:
            first = decode[-1].tokens.stop if decode else 0
            decode.append(_decode_group(first, pool, cache, device))
        reading.sort(key=lambda one: (one[0].computed, one[1]))
        prompts = []
        first = len(rows)
        for (start, length), same in groupby(reading, key=lambda one: (one[0].computed, one[1])):
            together = [row for row, _ in same]
            for part in [together] if start == 0 else [[row] for row in together]:
                prompts.append(_prompt_group(first, part, start, length, cache, device))
                first += len(part) * length
        return cls(
            rows=(*rows, *(row for row, _ in reading)),
            counts=(*(1 for _ in rows), *(count for _, count in reading)),
            skipped=batch.skipped,
            decode=tuple(decode),
            prompts=tuple(prompts),
        )


def place_rows(batch: Batch, cache: KvCache) -> None:
    """Gives each row of a batch memory for the tokens that it computes next."""
    for row in batch.rows:
        if row.state != "decode":
            row.kv = row.kv or cache.begin(len(row.tokens))
            continue
        if isinstance(row.kv, PromptKv):
            row.kv = cache.place(row, row.kv, row.computed)
        assert isinstance(row.kv, Slot)
        row.kv = cache.widen(row.kv, row.computed)


def _attended(seen: int, columns: int, dtype: torch.dtype) -> int:
    """Columns that a group attends to: in 16 bits a multiple of 32.

    There oneDNN computes the products on a CPU, which compiles a kernel for every size it has not met, and keeps it.
    """
    return min(-(-seen // _COLUMN_STEP) * _COLUMN_STEP, columns) if dtype.itemsize == 2 else seen


def _decode_group(first: int, pool: Pool, cache: KvCache, device: torch.device) -> DecodeGroup:
    computed = [slot.row.computed for slot in pool.slots]
    reach = []
    for (shape, _), columns in zip(cache.kinds, pool.columns, strict=True):
        seen = [min(c + 1, columns) for c in computed]
        attended = _attended(max(seen), columns, shape.dtype)
        mask_n1T = None
        if min(seen) < attended:
            hidden_nT = torch.arange(attended, device=device) >= torch.tensor(seen, device=device)[:, None]
            zeros_n1T = torch.zeros(len(seen), 1, attended, dtype=shape.dtype, device=device)
            mask_n1T = zeros_n1T.masked_fill_(hidden_nT[:, None], float("-inf"))
        reach.append(Reach(torch.tensor([c % columns for c in computed], device=device), attended, mask_n1T))
    rows_n = torch.arange(len(computed), device=device)
    return DecodeGroup(slice(first, first + len(computed)), pool, cache.place_of_layer, rows_n, tuple(reach))


def _prompt_group(
    first: int, rows: Sequence[Row], start: int, length: int, cache: KvCache, device: torch.device
) -> PromptGroup:
    first_read: list[int] = []
    masks: list[Tensor | None] = []
    for shape, _ in cache.kinds:
        window = shape.window or start + length
        low = max(0, start - window + 1) if start else 0
        first_read.append(low)
        if start == 0 and length <= window:
            masks.append(None)
            continue
        query_P1 = torch.arange(start, start + length, device=device)[:, None]
        key_T = torch.arange(low, start + length, device=device)
        masks.append((key_T <= query_P1) & (key_T > query_P1 - window))
    prompts = [row.kv for row in rows if isinstance(row.kv, PromptKv)]
    tokens = slice(first, first + len(rows) * length)
    return PromptGroup(tokens, prompts, start, length, cache.place_of_layer, tuple(first_read), tuple(masks))
