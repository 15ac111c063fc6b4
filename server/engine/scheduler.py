"""Decides which rows take part in the next forward, and with how many tokens. No tensors.

Every row that decodes takes part in every step; beside them a bounded number of prompt tokens is read. A row is
admitted only when the memory that it may need until its end is free, so memory never decides later.

Rows that are compared on one text are admitted at once or not at all, and one comparison at a time: two that hold half
of their memory would wait for each other for ever. They advance in lock-step, in batches of their own.
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


_SCORED_TOKENS = 256
"""Tokens of a step, of all rows compared, for which the logits of the whole vocabulary are kept."""

_SOUND_FORWARDS = 1000
"""Forwards without lack of memory, half a minute or so, after which more is dared again."""


class Scheduler:
    """Owners take turns, and each owner's requests come in order.

    ``max_batch`` rows are live at once, as far as ``budget`` holds what ``cost`` says each may need (any unit); the
    last comparison admitted may exceed that number, as its rows are never part of a larger batch.
    ``prefill_tokens`` prompt tokens at most are computed in a step, ``idle_prefill_tokens`` where none decodes.
    ``may_start`` can hold a row back for a while; ``start`` is called when a row is admitted; it may find that part of
    its prompt is computed already, or release the row.
    """

    def __init__(
        self,
        max_batch: int,
        prefill_tokens: int,
        *,
        idle_prefill_tokens: int | None = None,
        budget: int | None = None,
        cost: Callable[[Row], int] = lambda _row: 0,
        may_start: Callable[[Row], bool] = lambda _row: True,
        start: Callable[[Row], None] = lambda _row: None,
    ) -> None:
        self.max_batch = self._most = max_batch
        self._sound = 0
        self._alone = False
        self._prefill_tokens = prefill_tokens
        self._idle_prefill_tokens = idle_prefill_tokens or prefill_tokens
        self._budget = budget
        self._cost = cost
        self._may_start = may_start
        self._start = start
        self._turn = 0
        self._waiting: dict[str | None, deque[tuple[Row, ...]]] = {}
        self._reading: list[Row] = []
        self._decoding: list[Row] = []
        self._compared: list[Row] = []
        self._spent: dict[Row, int] = {}

    @property
    def waiting(self) -> int:
        """Rows that were not admitted yet."""
        return sum(len(rows) for queue in self._waiting.values() for rows in queue)

    @property
    def live(self) -> int:
        """Rows that were admitted."""
        return len(self._spent)

    @property
    def promised(self) -> int:
        """What the live rows may need in all, in the unit of ``budget``."""
        return sum(self._spent.values())

    def submit(self, *rows: Row) -> None:
        """Queues rows to be admitted at once; never refuses: the engine bounds how many there are."""
        self._waiting.setdefault(rows[0].request.owner, deque()).append(rows)

    def next_batch(self) -> Batch | None:
        """The next forward, or None when nothing is to be done. The kinds of batches take turns."""
        while len(self._spent) < self.max_batch and self._admit_next():
            pass
        kinds = (self._continue, self._resume, self._compare)
        for _ in kinds:
            self._turn = (self._turn + 1) % len(kinds)
            batch = kinds[self._turn]()
            if batch is not None:
                return batch
        return None

    def compute_less(self) -> None:
        """Halves the limit because the live rows were too much; it doubles again whenever 1,000 forwards went well.

        A row that was alone is too large itself: the limit stays.
        """
        self._sound = 0
        if self.live > 1:
            self.max_batch = self.live // 2

    def decode_alone(self) -> None:
        """Has the next step compute the rows that decode without prompts: so it shows whether they can be computed."""
        self._alone = True

    def commit(self, batch: Batch) -> None:
        """Records that the batch was computed; rows whose prompt is complete decode from now on."""
        self._sound += 1
        if self._sound >= _SOUND_FORWARDS:
            self._sound = 0
            self.max_batch = min(2 * self.max_batch, self._most)
        for row, count in zip(batch.rows, batch.counts, strict=True):
            if row not in self._spent:
                continue
            row.computed += count
            if row.state == "prefill" and not row.prompt_left:
                self._reading.remove(row)
                self._decoding.append(row)
                row.state = "decode"

    def release(self, row: Row) -> None:
        """Takes a row out, whatever its state; if it waits, with those it waits for. A second call does nothing."""
        if self._spent.pop(row, None) is not None:
            live = {"prefill": self._reading, "decode": self._decoding, "score": self._compared}
            live[row.state].remove(row)
            return
        queue = self._waiting.get(row.request.owner, deque())
        rows = next((rows for rows in queue if row in rows), None)
        if rows is not None:
            queue.remove(rows)
            if not queue:
                del self._waiting[row.request.owner]

    def _admit_next(self) -> bool:
        """Admits the first rows of the first owner who has some that may start; he is the last to be asked again."""
        free = None if self._budget is None else self._budget - self.promised
        for owner, queue in self._waiting.items():
            rows = next((rows for rows in queue if self._may_start_now(rows)), None)
            if rows is None:
                continue
            costs = [self._cost(row) for row in rows]
            if free is not None and sum(costs) > free:
                # Smaller rows do not overtake: they would keep the memory taken for ever.
                return False
            queue.remove(rows)
            del self._waiting[owner]
            if queue:
                self._waiting[owner] = queue
            for row, cost in zip(rows, costs, strict=True):
                if row.released:  # another one of them could not be started
                    continue
                self._spent[row] = cost
                row.state = "score" if row.request.scored_ids else "prefill"
                (self._compared if row.state == "score" else self._reading).append(row)
                row.admitted()
                self._start(row)
            return True
        return False

    def _may_start_now(self, rows: tuple[Row, ...]) -> bool:
        return not (self._compared and rows[0].request.scored_ids) and all(map(self._may_start, rows))

    def _continue(self) -> Batch | None:
        """All rows that decode, and prompt tokens of which nothing is known."""
        alone, self._alone = self._alone and bool(self._decoding), False
        chunks = [] if alone else self._share([row for row in self._reading if not row.skipped])
        rows = (*self._decoding, *(row for row, _ in chunks))
        return Batch(rows, (*(1 for _ in self._decoding), *(count for _, count in chunks))) if rows else None

    def _resume(self) -> Batch | None:
        """Positions whose lower layers are known, of the rows that know as many layers as the first."""
        resuming = [row for row in self._reading if row.skipped]
        if not resuming:
            return None
        room, skipped = self._prefill_tokens, resuming[0].skipped
        chunks: list[tuple[Row, int]] = []
        for row in resuming:
            count = min(row.known_until - row.computed, room)
            if row.skipped == skipped and count:
                chunks.append((row, count))
                room -= count
        return Batch(tuple(row for row, _ in chunks), tuple(count for _, count in chunks), skipped)

    def _compare(self) -> Batch | None:
        """The rows compared that are furthest behind, up to where others stand: from the text on, all in one batch."""
        if not self._compared:
            return None
        start = min(row.computed for row in self._compared)
        behind = [row for row in self._compared if row.computed == start]
        rows = [row for row in behind if row.skipped == behind[0].skipped]
        text = rows[0].prompt_len - 1
        room = self._prefill_tokens if start < text else min(self._prefill_tokens, _SCORED_TOKENS)
        others = (stop for row in self._compared for stop in (row.computed, row.known_until))
        stop = min(stop for stop in (text, len(rows[0].tokens), *others) if stop > start)
        count = min(max(room // len(rows), 1), stop - start)
        return Batch(tuple(rows), (count,) * len(rows), rows[0].skipped)

    def _share(self, reading: list[Row]) -> list[tuple[Row, int]]:
        """Prompt tokens of a step: half for the oldest prompt, the rest for the shortest, so that none waits long."""
        room = self._prefill_tokens if self._decoding else self._idle_prefill_tokens
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
