"""Policy without tensors: who computes when, and in which slot."""

import random
import subprocess
import sys

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.engine.request import GenerationRequest
from server.engine.row import Row
from server.engine.scheduler import Scheduler
from server.types import SamplingParams

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from server.engine.row import Row
from server.engine.scheduler import Scheduler
scheduler = Scheduler(max_batch=2, prefill_tokens=8)
assert scheduler.next_batch() is None
print("scheduled")
"""


def row(name: str, prompt: int) -> Row:
    request = GenerationRequest(name, tuple(range(prompt)), SamplingParams(max_tokens=100))
    return Row(request, lambda _event: None, None, random.Random(0))


def counts(batch) -> dict[str, int]:
    return {r.request.id: count for r, count in zip(batch.rows, batch.counts, strict=True)}


def test_needs_no_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "scheduled", done.stderr


def test_prefill_and_decode_take_turns():
    scheduler = Scheduler(max_batch=4, prefill_tokens=8)
    first, second = row("first", 4), row("second", 20)
    for one in (first, second):
        scheduler.submit(one)
    seen = []
    for _ in range(6):
        batch = scheduler.next_batch()
        seen.append((batch.phase, counts(batch)))
        scheduler.commit(batch)
        for one in batch.rows:
            if one.computed == len(one.tokens):
                one.tokens.append(0)
    assert seen == [
        ("prefill", {"first": 4}),
        ("decode", {"first": 1}),
        ("prefill", {"second": 8}),
        ("decode", {"first": 1}),
        ("prefill", {"second": 8}),
        ("decode", {"first": 1}),
    ]


def test_a_prefill_counts_its_padding():
    scheduler = Scheduler(max_batch=8, prefill_tokens=16)
    for name, prompt in (("a", 3), ("b", 8), ("c", 2), ("d", 1)):
        scheduler.submit(row(name, prompt))
    assert counts(scheduler.next_batch()) == {"a": 3, "b": 8}


def test_no_more_rows_than_allowed_are_live():
    scheduler = Scheduler(max_batch=2, prefill_tokens=64)
    rows = [row(str(i), 2) for i in range(5)]
    for one in rows:
        scheduler.submit(one)
    assert counts(scheduler.next_batch()) == {"0": 2, "1": 2}
    assert (scheduler.live, scheduler.waiting) == (2, 3)
    scheduler.release(rows[0])
    scheduler.release(rows[3])
    scheduler.next_batch()
    assert (scheduler.live, scheduler.waiting) == (2, 1)


def test_a_lowered_limit_holds_for_new_rows():
    scheduler = Scheduler(max_batch=3, prefill_tokens=64)
    rows = [row(str(i), 1) for i in range(5)]
    for one in rows:
        scheduler.submit(one)
    scheduler.next_batch()
    scheduler.max_batch = 1
    for one in rows[:2]:
        scheduler.release(one)
    scheduler.next_batch()
    assert (scheduler.live, scheduler.waiting) == (1, 2)


class Slots(RuleBasedStateMachine):
    """Any order of events; ``cells`` is what the cache's slots hold when the moves are carried out on them."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_batch=5, prefill_tokens=6)
        self.rows: list[Row] = []
        self.cells: dict[int, str | None] = {}
        self.count = 0

    def carry_out(self) -> None:
        for move in self.scheduler.take_moves():
            held = self.cells.get(move.source)
            if move.kind == "clear":
                self.cells[move.target] = None
            elif move.kind == "copy":
                self.cells[move.target] = held
            else:
                self.cells[move.source], self.cells[move.target] = self.cells.get(move.target), held

    @rule(prompt=st.integers(1, 15))
    def submit(self, prompt: int) -> None:
        self.count += 1
        self.rows.append(row(f"r{self.count}", prompt))
        self.scheduler.submit(self.rows[-1])

    @rule(releases=st.lists(st.integers(0, 20), max_size=3), late=st.booleans())
    def step(self, releases: list[int], late: bool) -> None:
        batch = self.scheduler.next_batch()
        self.carry_out()
        if batch is None:
            assert not self.rows
            return
        assert len({r.slot for r in batch.rows}) == len(batch.rows)
        if batch.phase == "decode":
            assert sorted(r.slot for r in batch.rows) == list(range(len(batch.rows)))
        else:
            assert max(batch.counts) * len(batch.counts) <= 6
        for one in batch.rows:
            assert self.cells.get(one.slot) == (one.request.id if one.computed else None), "another row's data"
            self.cells[one.slot] = one.request.id
        if not late:
            self.release(releases)
        self.scheduler.commit(batch)
        for one in batch.rows:
            if one.slot >= 0 and one.computed == len(one.tokens):
                one.tokens.append(0)
        self.release(releases if late else [])

    @precondition(lambda self: self.rows)
    @rule(which=st.lists(st.integers(0, 20), min_size=1, max_size=4))
    def release(self, which: list[int]) -> None:
        for index in which:
            if self.rows:
                gone = self.rows.pop(index % len(self.rows))
                self.scheduler.release(gone)
                self.scheduler.release(gone)
                assert gone.slot == -1

    @invariant()
    def slots_are_dense_and_decoding_rows_come_first(self) -> None:
        live = [r for r in self.rows if r.slot >= 0]
        assert sorted(r.slot for r in live) == list(range(self.scheduler.live))
        assert self.scheduler.waiting == len(self.rows) - len(live)
        decoding = [r.slot for r in live if r.state == "decode"]
        assert sorted(decoding) == list(range(len(decoding)))
        assert all((r.computed >= r.prompt_len) == (r.state == "decode") for r in live)

    def teardown(self) -> None:
        self.release([0] * len(self.rows))
        assert (self.scheduler.live, self.scheduler.waiting) == (0, 0)
        self.carry_out()
        assert not any(self.cells.values()), "a slot that nobody holds is cleared"


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
