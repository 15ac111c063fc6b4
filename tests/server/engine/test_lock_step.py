"""The order in which rows that are compared advance, among others and in any order of events. No tensors."""

import random

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from server.engine.request import GenerationRequest
from server.engine.row import Row
from server.engine.scheduler import Scheduler
from server.types import SamplingParams


class Comparisons(RuleBasedStateMachine):
    """Rows with random known prefixes: those compared reach their text together, and all come to an end."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, tuple[int, int, int]] = {}
        self.scheduler = Scheduler(4, 8, budget=400, cost=lambda row: row.request.tokens_at_most, start=self._start)
        self.live: list[Row] = []
        self.number = 0

    def _start(self, row: Row) -> None:
        row.computed, row.known_layers, row.known_until = self.known[row.request.id]

    def _row(self, prompt: int, text: int, known: tuple[int, int, int]) -> Row:
        self.number += 1
        sampling = SamplingParams(max_tokens=0 if text else 3)
        request = GenerationRequest(f"r{self.number}", (1,) * prompt, sampling, scored_ids=(1,) * text)
        whole = min(known[0], (prompt - 1) // 4) * 4
        until = max(min(known[2], (prompt - 1) // 4) * 4, whole)
        self.known[request.id] = (whole, known[1], until)
        row = Row(request, lambda _event: None, None, random.Random(0))
        self.live.append(row)
        return row

    known_parts = st.tuples(st.integers(0, 5), st.integers(1, 2), st.integers(0, 5))

    @rule(prompt=st.integers(1, 25), known=known_parts)
    def submit(self, prompt, known):
        self.scheduler.submit(self._row(prompt, 0, known))

    @rule(prompt=st.integers(1, 25), text=st.integers(1, 30), known=st.lists(known_parts, min_size=1, max_size=6))
    def compare(self, prompt, text, known):
        rows = [self._row(prompt, text, one) for one in known]
        for row in rows:
            row.peers = tuple(peer for peer in rows if peer is not row)
        self.scheduler.submit(*rows)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data):
        self._end(data.draw(st.sampled_from(self.live)))

    @rule(steps=st.integers(1, 12))
    def step(self, steps):
        for _ in range(steps):
            self._one()

    def _one(self) -> bool:
        batch = self.scheduler.next_batch()
        if batch is None:
            return False
        assert all(row.skipped == batch.skipped for row in batch.rows)
        scored = [row for row in batch.rows if row.state == "score"]
        assert scored in ([], list(batch.rows))
        assert not batch.skipped or all(
            row.computed + count <= row.known_until for row, count in zip(batch.rows, batch.counts, strict=True)
        )
        for row, count in zip(batch.rows, batch.counts, strict=True):
            stop = row.computed + count
            assert count > 0
            assert stop <= len(row.tokens)
            if scored and stop >= row.prompt_len:
                assert row.computed >= row.prompt_len - 1, "logits are wanted of every token or of none"
                assert set(batch.rows) == set(row.together)
                assert len({(one.computed, n) for one, n in zip(batch.rows, batch.counts, strict=True)}) == 1
        self.scheduler.commit(batch)
        for row in batch.rows:
            if row.released or row.computed < len(row.tokens):
                continue
            if row.state == "score" or row.generated == 3:
                self._end(row)
            else:
                row.tokens.append(1)
        return True

    def _end(self, row: Row) -> None:
        for one in row.together:
            one.released = True
            self.scheduler.release(one)
            self.live.remove(one)

    def teardown(self) -> None:
        for _ in range(2000):
            if not self._one():
                break
        assert self.live == []
        assert (self.scheduler.live, self.scheduler.waiting) == (0, 0)


TestComparisons = Comparisons.TestCase
TestComparisons.settings = hypothesis_settings(max_examples=60, stateful_step_count=20, deadline=None)
