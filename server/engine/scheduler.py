"""Decides which rows take part in the next forward, and in which slot each row lives. No tensors.

Decoding rows occupy slots ``0 .. decoding``, rows in prefill the slots above, so that a decode step reads the cache
through one view. Every change of place is a :class:`Move` that the cache has to carry out before the next forward.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from server.engine.row import Row


@dataclass(frozen=True, slots=True)
class Move:
    """A change in the cache: copy slot ``source`` to ``target``, swap both, or clear ``target``."""

    kind: Literal["copy", "swap", "clear"]
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one forward with the number of tokens that each computes."""

    phase: Literal["prefill", "decode"]
    rows: tuple[Row, ...]
    counts: tuple[int, ...]


class Scheduler:
    """First come, first served; prefill and decode take turns, so neither waits for all of the other.

    ``max_batch`` rows are live at once. A prefill computes at most ``prefill_tokens`` tokens, padding included; longer
    prompts are computed in chunks.
    """

    def __init__(self, max_batch: int, prefill_tokens: int) -> None:
        self.max_batch = max_batch
        self._prefill_tokens = prefill_tokens
        self._waiting: deque[Row] = deque()
        self._live: list[Row] = []
        self._decoding = 0
        self._moves: list[Move] = []
        self._last_phase: Literal["prefill", "decode"] = "decode"

    @property
    def waiting(self) -> int:
        """Rows that have no slot yet."""
        return len(self._waiting)

    @property
    def live(self) -> int:
        """Rows that have a slot."""
        return len(self._live)

    def submit(self, row: Row) -> None:
        """Queues a row; never refuses: the engine bounds how many there are."""
        self._waiting.append(row)

    def take_moves(self) -> list[Move]:
        """Moves since the last call, in order."""
        moves, self._moves = self._moves, []
        return moves

    def next_batch(self) -> Batch | None:
        """The next forward, or None when nothing is to be done."""
        while self._waiting and len(self._live) < self.max_batch:
            row = self._waiting.popleft()
            row.slot, row.state = len(self._live), "prefill"
            self._live.append(row)
        prefilling = len(self._live) - self._decoding
        if prefilling and (not self._decoding or self._last_phase == "decode"):
            self._last_phase = "prefill"
            return self._prefill_batch()
        self._last_phase = "decode"
        if not self._decoding:
            return None
        return Batch("decode", tuple(self._live[: self._decoding]), (1,) * self._decoding)

    def commit(self, batch: Batch) -> None:
        """Records that the batch was computed; rows whose prompt is complete decode from now on."""
        for row, count in zip(batch.rows, batch.counts, strict=True):
            if row.slot < 0:
                continue
            row.computed += count
            if row.state == "prefill" and not row.prompt_left:
                self._promote(row)

    def release(self, row: Row) -> None:
        """Takes a row out, whatever its state; its slot is cleared and the gap closed. A second call does nothing."""
        if row.slot < 0:
            if row in self._waiting:
                self._waiting.remove(row)
            return
        gap = row.slot
        self._moves.append(Move("clear", gap, gap))
        if gap < self._decoding:
            self._decoding -= 1
            gap = self._close(gap, self._decoding)
        gap = self._close(gap, len(self._live) - 1)
        self._live.pop()
        row.slot = -1

    def _close(self, gap: int, last: int) -> int:
        """Moves the row in slot ``last`` into ``gap``; the gap is then at ``last``, cleared."""
        if gap != last:
            moved = self._live[last]
            self._live[gap] = moved
            moved.slot = gap
            self._moves += [Move("copy", last, gap), Move("clear", last, last)]
        return last

    def _promote(self, row: Row) -> None:
        target = self._decoding
        if row.slot != target:
            other = self._live[target]
            self._live[target], self._live[row.slot] = row, other
            self._moves.append(Move("swap", row.slot, target))
            row.slot, other.slot = target, row.slot
        self._decoding += 1
        row.state = "decode"

    def _prefill_batch(self) -> Batch:
        rows: list[Row] = []
        counts: list[int] = []
        for row in self._live[self._decoding :]:
            longest = max([*counts, min(row.prompt_left, self._prefill_tokens)])
            if rows and longest * (len(rows) + 1) > self._prefill_tokens:
                break
            rows.append(row)
            counts.append(min(row.prompt_left, self._prefill_tokens))
        return Batch("prefill", tuple(rows), tuple(counts))
