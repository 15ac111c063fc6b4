"""Policy without tensors: who computes when, and how many tokens."""

import random
import subprocess
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.engine.request import GenerationRequest
from server.engine.row import Row
from server.engine.scheduler import Batch, Scheduler
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


def row(name: str, prompt: int, owner: str | None = None) -> Row:
    request = GenerationRequest(name, tuple(range(prompt)), SamplingParams(max_tokens=100), owner=owner)
    return Row(request, lambda _event: None, None, random.Random(0))


def counts(batch) -> dict[str, int]:
    return {r.request.id: count for r, count in zip(batch.rows, batch.counts, strict=True)}


def submitted(scheduler: Scheduler, *rows: Row) -> tuple[Row, ...]:
    for one in rows:
        scheduler.submit(one)
    return rows


def step(scheduler: Scheduler) -> dict[str, int]:
    """Computes the next batch; rows whose prompt is complete draw a token."""
    batch = scheduler.next_batch()
    seen = counts(batch)
    scheduler.commit(batch)
    for one in batch.rows:
        if one.computed == len(one.tokens):
            one.tokens.append(0)
    return seen


def test_needs_no_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "scheduled", done.stderr


# -- a step ---------------------------------------------------------------------------------------------------------


def test_prompts_are_read_beside_rows_that_decode():
    scheduler = Scheduler(max_batch=4, prefill_tokens=8)
    submitted(scheduler, row("first", 4), row("second", 20))
    assert step(scheduler) == {"first": 4, "second": 4}
    assert [step(scheduler) for _ in range(3)] == [{"first": 1, "second": 8}] * 2 + [{"first": 1, "second": 1}]


def test_a_row_knows_how_long_it_waited():
    scheduler = Scheduler(max_batch=1, prefill_tokens=8)
    first, second = submitted(scheduler, row("first", 4), row("second", 4))
    first.submitted_at -= 5
    second.submitted_at -= 7
    step(scheduler)
    assert 5 <= first.queued_s < 60
    assert second.queued_s == 0
    scheduler.release(first)
    step(scheduler)
    assert 7 <= second.queued_s < 60


def test_phase_says_whether_prompts_are_read():
    scheduler = Scheduler(max_batch=4, prefill_tokens=8)
    submitted(scheduler, row("a", 4))
    phases = []
    for _ in range(2):
        phases.append(scheduler.next_batch().phase)
        step(scheduler)
    submitted(scheduler, row("b", 4))
    assert [*phases, scheduler.next_batch().phase] == ["mixed", "decode", "mixed"]


def test_a_short_prompt_does_not_wait_for_a_whole_long_one():
    scheduler = Scheduler(max_batch=4, prefill_tokens=8)
    submitted(scheduler, row("long", 1000))
    assert step(scheduler) == {"long": 8}
    submitted(scheduler, row("short", 4), row("middle", 6))
    assert step(scheduler) == {"long": 4, "short": 4}
    assert step(scheduler) == {"short": 1, "long": 4, "middle": 4}
    assert step(scheduler) == {"short": 1, "long": 6, "middle": 2}


def test_a_long_prompt_is_read_on_whatever_else_comes():
    scheduler = Scheduler(max_batch=100, prefill_tokens=8)
    (long,) = submitted(scheduler, row("long", 100))
    steps = 0
    while long.state != "decode":
        submitted(scheduler, *(row(f"{steps}-{i}", 3) for i in range(3)))
        step(scheduler)
        steps += 1
    assert steps <= 1 + 100 / (8 / 2)


# -- admission ------------------------------------------------------------------------------------------------------


def test_no_more_rows_than_allowed_are_live():
    scheduler = Scheduler(max_batch=2, prefill_tokens=64)
    rows = submitted(scheduler, *(row(str(i), 2) for i in range(5)))
    assert counts(scheduler.next_batch()) == {"0": 2, "1": 2}
    assert (scheduler.live, scheduler.waiting) == (2, 3)
    scheduler.release(rows[0])
    scheduler.release(rows[3])
    scheduler.next_batch()
    assert (scheduler.live, scheduler.waiting) == (2, 1)


def test_a_lowered_limit_holds_for_new_rows():
    scheduler = Scheduler(max_batch=3, prefill_tokens=64)
    rows = submitted(scheduler, *(row(str(i), 1) for i in range(5)))
    scheduler.next_batch()
    scheduler.compute_less()
    for one in rows[:2]:
        scheduler.release(one)
    scheduler.next_batch()
    assert (scheduler.live, scheduler.waiting) == (1, 2)


def test_one_row_that_is_too_large_lowers_no_limit():
    scheduler = Scheduler(max_batch=3, prefill_tokens=64)
    submitted(scheduler, row("large", 1))
    scheduler.next_batch()
    scheduler.compute_less()
    assert scheduler.max_batch == 3


def test_a_lowered_limit_rises_again_when_all_goes_well(monkeypatch):
    monkeypatch.setattr("server.engine.scheduler._SOUND_FORWARDS", 10)
    scheduler = Scheduler(max_batch=7, prefill_tokens=64)
    submitted(scheduler, *(row(str(i), 1) for i in range(7)))
    step(scheduler)
    scheduler.compute_less()
    limits = []
    for forward in range(35):
        if forward == 15:
            scheduler.compute_less()
        step(scheduler)
        limits.append(scheduler.max_batch)
    assert limits == [3] * 9 + [6] * 6 + [3] * 9 + [6] * 10 + [7]


def admitted(scheduler: Scheduler) -> list[str]:
    """Names in the order of admission, where one row is live at a time."""
    names = []
    while (batch := scheduler.next_batch()) is not None:
        (one,) = batch.rows
        names.append(one.request.id)
        scheduler.release(one)
    return names


def test_owners_take_turns_and_each_keeps_its_order():
    scheduler = Scheduler(max_batch=1, prefill_tokens=64)
    submitted(scheduler, *(row(f"a{i}", 1, "alice") for i in range(4)))
    submitted(scheduler, *(row(f"b{i}", 1, "bob") for i in range(2)), row("n0", 1), row("b2", 1, "bob"))
    assert admitted(scheduler) == ["a0", "b0", "n0", "a1", "b1", "a2", "b2", "a3"]


def test_who_was_served_last_is_asked_last_also_after_going_away():
    scheduler = Scheduler(max_batch=1, prefill_tokens=64)
    (alice,) = submitted(scheduler, row("a0", 1, "alice"))
    scheduler.next_batch()
    submitted(scheduler, row("b0", 1, "bob"), row("a1", 1, "alice"), row("b1", 1, "bob"))
    scheduler.release(alice)
    assert admitted(scheduler) == ["b0", "a1", "b1"]


def test_rows_wait_until_their_memory_is_free():
    scheduler = Scheduler(max_batch=9, prefill_tokens=64, budget=10, cost=lambda one: one.prompt_len)
    rows = submitted(scheduler, row("a", 6), row("b", 4), row("c", 1))
    assert counts(scheduler.next_batch()) == {"a": 6, "b": 4}
    scheduler.release(rows[1])
    assert counts(scheduler.next_batch()) == {"a": 6, "c": 1}


def test_a_large_row_is_not_overtaken_for_ever():
    """Small rows come all the time, of its own owner and of others, and would always fit."""
    scheduler = Scheduler(max_batch=9, prefill_tokens=64, budget=10, cost=lambda one: one.prompt_len)
    live = submitted(scheduler, *(row(f"s{i}", 2, "alice") for i in range(5)))
    scheduler.next_batch()
    (large,) = submitted(scheduler, row("large", 9, "bob"))
    for i, one in enumerate(live):
        assert large.state == "waiting"
        submitted(scheduler, row(f"t{i}", 2, "alice"), row(f"u{i}", 2, "bob"), row(f"v{i}", 2, f"owner{i}"))
        scheduler.release(one)
        scheduler.next_batch()
    assert large.state == "prefill"


def test_a_row_that_may_not_start_holds_up_nobody_else():
    held = {"a0"}
    scheduler = Scheduler(max_batch=9, prefill_tokens=64, may_start=lambda one: one.request.id not in held)
    submitted(scheduler, row("a0", 1, "alice"), row("a1", 1, "alice"), row("b0", 1, "bob"))
    assert counts(scheduler.next_batch()) == {"a1": 1, "b0": 1}
    assert counts(scheduler.next_batch()) == {"a1": 1, "b0": 1}
    held.clear()
    assert counts(scheduler.next_batch()) == {"a1": 1, "b0": 1, "a0": 1}


def test_cost_is_asked_once_and_given_back_as_it_was():
    costs = iter([7, 7])
    scheduler = Scheduler(max_batch=9, prefill_tokens=64, budget=10, cost=lambda one: next(costs))
    (first,) = submitted(scheduler, row("a", 1))
    step(scheduler)
    step(scheduler)
    scheduler.release(first)
    submitted(scheduler, row("b", 1))
    assert counts(scheduler.next_batch()) == {"b": 1}


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_release_in_any_state_and_twice(steps):
    scheduler = Scheduler(max_batch=1, prefill_tokens=4)
    one, other = submitted(scheduler, row("a", 10), row("b", 1))
    for _ in range(steps):
        step(scheduler)
    for _ in range(2):
        scheduler.release(one)
    assert counts(scheduler.next_batch()) == {"b": 1}
    scheduler.release(other)
    assert (scheduler.live, scheduler.waiting) == (0, 0)
    assert scheduler.next_batch() is None


# -- any order of events --------------------------------------------------------------------------------------------

PREFILL, MAX_BATCH, BUDGET = 6, 4, 30


class Policy(RuleBasedStateMachine):
    """Follows every row, and knows who is next of each owner."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(
            MAX_BATCH, PREFILL, budget=BUDGET, cost=lambda one: one.prompt_len, may_start=self.may_start
        )
        self.rows: list[Row] = []
        self.held: set[Row] = set()
        self.count = 0

    def may_start(self, one: Row) -> bool:
        return one not in self.held

    @rule(prompt=st.integers(1, 25), owner=st.sampled_from(["a", "b", None]), held=st.booleans())
    def submit(self, prompt: int, owner: str | None, held: bool) -> None:
        self.count += 1
        one = row(f"r{self.count}", prompt, owner)
        self.rows.append(one)
        if held and prompt % 2:
            self.held.add(one)
        self.scheduler.submit(one)

    @precondition(lambda self: self.held)
    @rule()
    def let_go(self) -> None:
        self.held.clear()

    @rule(releases=st.lists(st.integers(0, 20), max_size=2))
    def step(self, releases: list[int]) -> None:
        waiting = [r for r in self.rows if r.state == "waiting"]
        batch = self.scheduler.next_batch()
        self.check_admission(waiting)
        if batch is None:
            assert all(r in self.held for r in self.rows)
            return
        self.check_shares(batch)
        self.release(releases)
        before = {r: r.computed for r in batch.rows}
        self.scheduler.commit(batch)
        for one, count in zip(batch.rows, batch.counts, strict=True):
            assert one.computed - before[one] == (count if one in self.rows else 0)
            if one in self.rows and one.computed == len(one.tokens):
                one.tokens.append(0)

    def check_admission(self, waiting: list[Row]) -> None:
        """Nobody overtakes within an owner but those held back, and what waits has a reason to."""
        still = [r for r in waiting if r.state == "waiting" and r not in self.held]
        for one in waiting:
            if one.state != "waiting":
                earlier = waiting[: waiting.index(one)]
                assert not [r for r in earlier if r in still and r.request.owner == one.request.owner]
        spent = sum(r.prompt_len for r in self.rows if r.state != "waiting")
        if still and self.scheduler.live < MAX_BATCH:
            heads = {r.request.owner: r for r in reversed(still)}
            assert any(spent + head.prompt_len > BUDGET for head in heads.values()), "room, and yet nobody came"

    def check_shares(self, batch) -> None:
        given = counts(batch)
        decoding = [r for r in self.rows if r.state == "decode"]
        reading = [r for r in self.rows if r.state == "prefill"]
        assert [given[r.request.id] for r in decoding] == [1] * len(decoding), "every row that decodes takes part"
        assert {r.state for r in batch.rows[: len(decoding)]} <= {"decode"}
        prompt_tokens = sum(given.get(r.request.id, 0) for r in reading)
        assert prompt_tokens == min(PREFILL, sum(r.prompt_left for r in reading)), "no more than allowed, and all of it"
        assert all(0 < given[r.request.id] <= r.prompt_left for r in reading if r.request.id in given)
        if reading:
            oldest = next(r for r in batch.rows if r.state == "prefill")
            assert given[oldest.request.id] >= min(PREFILL // 2, oldest.prompt_left)

    @precondition(lambda self: self.rows)
    @rule(which=st.lists(st.integers(0, 20), min_size=1, max_size=4))
    def release(self, which: list[int]) -> None:
        for index in which:
            if self.rows:
                gone = self.rows.pop(index % len(self.rows))
                self.held.discard(gone)
                self.scheduler.release(gone)
                self.scheduler.release(gone)

    @invariant()
    def limits_hold_and_everybody_is_counted(self) -> None:
        live = [r for r in self.rows if r.state != "waiting"]
        assert (self.scheduler.live, self.scheduler.waiting) == (len(live), len(self.rows) - len(live))
        assert len(live) <= MAX_BATCH
        assert sum(r.prompt_len for r in live) <= BUDGET
        assert all((r.state == "decode") == (r.prompt_left == 0) for r in live)

    def teardown(self) -> None:
        """Whatever state was reached, every row gets to decode, once room is made by those that do."""
        self.held.clear()
        for _ in range(400):
            if not self.rows:
                break
            self.step([])
            for one in [r for r in self.rows if r.state == "decode"]:
                self.release([self.rows.index(one)])
        assert not self.rows
        assert self.scheduler.next_batch() is None


TestPolicy = Policy.TestCase
TestPolicy.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_more_is_read_where_no_answer_waits_for_it():
    scheduler = Scheduler(max_batch=4, prefill_tokens=8, idle_prefill_tokens=32)
    first, second = row("first", 24), row("second", 50)
    scheduler.submit(first)
    assert counts(scheduler.next_batch()) == {"first": 24}
    scheduler.commit(Batch((first,), (24,)))
    first.tokens.append(0)
    scheduler.submit(second)
    assert counts(scheduler.next_batch()) == {"first": 1, "second": 8}
