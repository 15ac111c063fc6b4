"""Decides which rows take part in the next forward, and with how many tokens. No tensors.

Every row that decodes takes part in every step; beside them a bounded number of prompt tokens is read. A row is
admitted only when the memory that it may need until its end is free, so memory never decides later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from server.engine.row import Row


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one forward with the number of tokens that each computes: first those that decode, then prompts.

    The lowest ``skipped`` layers are known already for all of these tokens and do not run.
    """

    rows: tuple[Row, ...]
    counts: tuple[int, ...]
    skipped: int = 0

    @property
    def phase(self) -> Literal["decode", "mixed"]:
        """``decode`` when every row computes the one token that it drew last."""
        return "decode" if all(row.state == "decode" for row in self.rows) else "mixed"


class Scheduler:
    """Owners take turns, and each owner's requests come in order.

    ``max_batch`` rows are live at once, as far as ``budget`` holds what ``cost`` says each may need (any unit).
    ``prefill_tokens`` prompt tokens at most are computed in a step. ``may_start`` can hold a row back for a while;
    ``start`` is called when a row is admitted, and may find that part of its prompt is computed already.
    """

    def __init__(
        self,
        max_batch: int,
        prefill_tokens: int,
        *,
        budget: int | None = None,
        cost: Callable[[Row], int] = lambda _row: 0,
        may_start: Callable[[Row], bool] = lambda _row: True,
        start: Callable[[Row], None] = lambda _row: None,
    ) -> None:
        self.max_batch = max_batch
        self._prefill_tokens = prefill_tokens
        self._budget = budget
        self._cost = cost
        self._may_start = may_start
        self._start = start
        self._resumed_last = False
        self._waiting: dict[str | None, deque[Row]] = {}
        self._reading: list[Row] = []
        self._decoding: list[Row] = []
        self._spent: dict[Row, int] = {}

    @property
    def waiting(self) -> int:
        """Rows that were not admitted yet."""
        return sum(map(len, self._waiting.values()))

    @property
    def live(self) -> int:
        """Rows that were admitted."""
        return len(self._spent)

    @property
    def promised(self) -> int:
        """What the live rows may need in all, in the unit of ``budget``."""
        return sum(self._spent.values())

    def submit(self, row: Row) -> None:
        """Queues a row; never refuses: the engine bounds how many there are."""
        self._waiting.setdefault(row.request.owner, deque()).append(row)

    def next_batch(self) -> Batch | None:
        """The next forward, or None when nothing is to be done."""
        while len(self._spent) < self.max_batch and self._admit_one():
            pass
        chunks = self._share([row for row in self._reading if row.computed >= row.known_until])
        rows = (*self._decoding, *(row for row, _ in chunks))
        resuming = [row for row in self._reading if row.computed < row.known_until]
        self._resumed_last = bool(resuming) and not (rows and self._resumed_last)
        if self._resumed_last:
            return self._resume(resuming)
        return Batch(rows, (*(1 for _ in self._decoding), *(count for _, count in chunks))) if rows else None

    def commit(self, batch: Batch) -> None:
        """Records that the batch was computed; rows whose prompt is complete decode from now on."""
        for row, count in zip(batch.rows, batch.counts, strict=True):
            if row not in self._spent:
                continue
            row.computed += count
            if row.state == "prefill" and not row.prompt_left:
                self._reading.remove(row)
                self._decoding.append(row)
                row.state = "decode"

    def release(self, row: Row) -> None:
        """Takes a row out, whatever its state. A second call does nothing."""
        if self._spent.pop(row, None) is not None:
            (self._decoding if row.state == "decode" else self._reading).remove(row)
            return
        queue = self._waiting.get(row.request.owner)
        if queue is not None and row in queue:
            queue.remove(row)
            if not queue:
                del self._waiting[row.request.owner]

    def _admit_one(self) -> bool:
        """Admits the first row of the first owner whose row may start; that owner is the last to be asked next time."""
        free = None if self._budget is None else self._budget - self.promised
        for owner, queue in self._waiting.items():
            row = next((row for row in queue if self._may_start(row)), None)
            if row is None:
                continue
            cost = self._cost(row)
            if free is not None and cost > free:
                # Smaller rows do not overtake: they would keep the memory taken for ever.
                return False
            queue.remove(row)
            del self._waiting[owner]
            if queue:
                self._waiting[owner] = queue
            self._spent[row] = cost
            self._reading.append(row)
            row.state = "prefill"
            self._start(row)
            return True
        return False

    def _resume(self, rows: list[Row]) -> Batch:
        """Positions whose lower layers are known, of the rows that know as many layers as the first."""
        room, skipped = self._prefill_tokens, rows[0].known_layers
        chunks: list[tuple[Row, int]] = []
        for row in rows:
            count = min(row.known_until - row.computed, room)
            if row.known_layers == skipped and count:
                chunks.append((row, count))
                room -= count
        return Batch(tuple(row for row, _ in chunks), tuple(count for _, count in chunks), skipped)

    def _share(self, reading: list[Row]) -> list[tuple[Row, int]]:
        """Prompt tokens of a step: half for the oldest prompt, the rest for the shortest, so that none waits long."""
        room = self._prefill_tokens
        if not reading:
            return []
        oldest = reading[0]
        others = sorted(reading[1:], key=lambda row: row.prompt_left)
        wanted = sum(row.prompt_left for row in others)
        chunks = [(oldest, min(oldest.prompt_left, max(room - wanted, (room + 1) // 2)))]
        room -= chunks[0][1]
        for row in others:
            if not room:
                break
            chunks.append((row, min(row.prompt_left, room)))
            room -= chunks[-1][1]
        return chunks
