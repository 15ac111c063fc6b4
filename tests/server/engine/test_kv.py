"""Slots, rings and length classes against texts whose every position is known."""

import itertools
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.engine.kv import KvCache, LayerShape, capacity_for, row_bytes
from server.engine.slot_memory import CopiedSlots, slot_memory

CONTEXT = 200
FULL = LayerShape(heads=2, key_size=4, value_size=3, window=None, dtype=torch.float64)
SLIDING = LayerShape(heads=2, key_size=4, value_size=3, window=70, dtype=torch.float64)
NARROW = LayerShape(heads=1, key_size=2, value_size=2, window=8, dtype=torch.float64)
SHAPES = [SLIDING, FULL, NARROW, SLIDING]
# float64 tells every name, layer and position apart exactly
NAMES = itertools.count(1)


def cache_of(shapes=SHAPES, context=CONTEXT) -> KvCache:
    return KvCache(shapes, context, torch.device("cpu"))


def told(name: int, layer: int, position: int) -> float:
    """What a column holds, so that it tells where it came from; values are the negative."""
    return 10_000.0 * name + 1000 * layer + position + 1


def read(cache: KvCache, computed: int):
    """A row whose prompt of ``computed`` tokens has been read into memory of its own."""
    row = SimpleNamespace(name=next(NAMES), computed=computed, kv=cache.begin(computed + 3))
    for held in (*row.kv.keys, *row.kv.values):
        held.fill_(torch.nan)
    for layer, (kind, place) in enumerate(cache.place_of_layer):
        for position in range(computed):
            row.kv.keys[kind][place, :, position] = told(row.name, layer, position)
            row.kv.values[kind][place, :, position] = -told(row.name, layer, position)
    return row


def placed(cache: KvCache, computed: int):
    row = read(cache, computed)
    row.kv = cache.place(row, row.kv, computed)
    return row


def decode(cache: KvCache, row) -> None:
    row.kv = cache.widen(row.kv, row.computed)
    for layer, (kind, place) in enumerate(cache.place_of_layer):
        column = row.computed % row.kv.pool.columns[kind]
        row.kv.pool.keys[kind][place, row.kv.index, :, column] = told(row.name, layer, row.computed)
        row.kv.pool.values[kind][place, row.kv.index, :, column] = -told(row.name, layer, row.computed)
    row.computed += 1


def assert_holds(cache: KvCache, row) -> None:
    """The last positions that fit, each in column ``p % C``, and zeros in columns that nobody owns."""
    assert row.kv.row is row
    assert row.kv.pool.slots[row.kv.index] is row.kv
    for layer, (kind, place) in enumerate(cache.place_of_layer):
        keys = row.kv.pool.keys[kind][place, row.kv.index]
        columns = keys.shape[1]
        expected = [0.0] * columns
        for position in range(max(0, row.computed - columns), row.computed):
            expected[position % columns] = told(row.name, layer, position)
        assert keys.amin(0).amin(-1).tolist() == keys.amax(0).amax(-1).tolist() == expected
        values = row.kv.pool.values[kind][place, row.kv.index]
        assert (-values).amin(0).amin(-1).tolist() == (-values).amax(0).amax(-1).tolist() == expected


@contextmanager
def memory_runs_out(at: int | None, *calls: str):
    """The ``at``-th of the tensor methods ``calls`` raises, but for tensors of no size; none does for None."""
    count = itertools.count()

    def counted(call):
        def counting(*args):
            if not any(type(size) is int and size == 0 for size in args) and next(count) == at:
                raise torch.OutOfMemoryError("no memory")
            return call(*args)

        return counting

    with patch.multiple(torch.Tensor, **{name: counted(getattr(torch.Tensor, name)) for name in calls}):
        yield count


ALLOCATE, COPY = "new_zeros", "__setitem__"


@pytest.fixture
def copied(monkeypatch):
    """Slots as on devices whose memory has to be there when it is asked for."""
    monkeypatch.setattr("server.engine.kv.slot_memory", CopiedSlots)


# -- length classes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "context", "capacity"),
    [
        (1, 512, 64),
        (64, 512, 64),
        (65, 512, 128),
        (257, 512, 512),
        (512, 512, 512),
        (129, 200, 200),
        (5, 40, 40),
        (1, 1, 1),
    ],
)
def test_classes_are_powers_of_two_up_to_the_context(tokens, context, capacity):
    assert capacity_for(tokens, context) == capacity


@pytest.mark.parametrize("tokens", [1, 63, 64, 100, 199])
def test_bytes_of_a_row_are_those_of_its_slot(tokens):
    cache = cache_of()
    row = placed(cache, tokens)
    assert row_bytes(SHAPES, tokens + 1, CONTEXT) == row.kv.pool.nbytes // row.kv.pool.keys[0].shape[1]


def test_layers_of_a_kind_share_tensors():
    assert cache_of().place_of_layer == [(0, 0), (1, 0), (2, 0), (0, 1)]


# -- a row ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("computed", [1, 7, 8, 9, 63, 64, 69, 70, 71, 127, 128, 141, 199])
def test_every_position_of_a_prompt_lands_in_its_column(computed):
    cache = cache_of()
    assert_holds(cache, placed(cache, computed))


@pytest.mark.parametrize("prompt", [1, 8, 63, 64, 130])
def test_every_position_decoded_lands_in_its_column_through_all_classes(prompt):
    cache = cache_of()
    row = placed(cache, prompt)
    classes = [row.kv.pool.capacity]
    while row.computed < CONTEXT:
        decode(cache, row)
        assert_holds(cache, row)
        classes.append(row.kv.pool.capacity)
    assert list(dict.fromkeys(classes)) == [c for c in (64, 128, 200) if c >= classes[0]]
    assert len(cache.pools) == 1, "the row left its shorter classes"


def test_a_row_that_leaves_takes_its_nan_with_it():
    cache = cache_of()
    rows = [placed(cache, 10) for _ in range(3)]
    pool = rows[0].kv.pool
    for held in (*pool.keys, *pool.values):
        held[:, rows[0].kv.index] = torch.nan
    pool.remove(rows[0].kv)
    for held in (*pool.keys, *pool.values):
        assert torch.isfinite(held).all()
    for row in rows[1:]:
        assert_holds(cache, row)
    assert_holds(cache, placed(cache, 3))


# -- many rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [slot_memory, CopiedSlots])
def test_growing_one_slot_at_a_time_seldom_copies(memory, monkeypatch):
    monkeypatch.setattr("server.engine.kv.slot_memory", memory)
    cache = cache_of()
    sizes = set()
    for _ in range(64):
        row = placed(cache, 2)
        sizes.add(cache.nbytes)
    assert len(sizes) <= 16
    assert row.kv.pool.keys[0].shape[1] <= 64 * 1.125 + 3


def test_memory_follows_the_rows_down_to_nothing():
    cache = cache_of()
    rows = [placed(cache, 2 + 100 * (i % 2)) for i in range(40)]
    most = cache.nbytes
    for row in rows[4:]:
        row.kv.pool.remove(row.kv)
    assert cache.nbytes < most / 3
    for row in rows[:4]:
        assert_holds(cache, row)
        row.kv.pool.remove(row.kv)
    assert cache.nbytes == 0
    assert cache.pools == []


def test_pools_come_from_the_shortest():
    cache = cache_of()
    for computed in (150, 5, 100):
        placed(cache, computed)
    assert [pool.capacity for pool in cache.pools] == [64, 128, 200]


# -- memory that runs out -------------------------------------------------------------------------------------------


def to_be_placed():
    """A row whose class has three slots, all taken."""
    cache = cache_of()
    rows = [placed(cache, 100) for _ in range(3)]
    last = read(cache, 100)
    return cache, rows, lambda: cache.place(last, last.kv, 100), last


def to_be_widened():
    cache = cache_of()
    rows = [placed(cache, 63), *(placed(cache, 100) for _ in range(3)), placed(cache, 30)]
    decode(cache, rows[0])
    return cache, rows, lambda: cache.widen(rows[0].kv, 64), rows[0]


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("prepare", [to_be_placed, to_be_widened])
def test_memory_that_runs_out_anywhere_spoils_nothing_and_keeps_no_slot(prepare):
    for at in range(6 * len(set(SHAPES))):  # of keys and values: allocations, copies while growing, copies of the row
        cache, rows, move, last = prepare()
        with pytest.raises(torch.OutOfMemoryError), memory_runs_out(at, ALLOCATE, COPY):
            move()
        assert {slot.row.name for pool in cache.pools for slot in pool.slots} == {row.name for row in rows}
        for row in rows:
            assert_holds(cache, row)
        last.kv = move()
        for row in (*rows, last):
            assert_holds(cache, row)


@pytest.mark.usefixtures("copied")
def test_a_row_can_leave_where_memory_has_run_out():
    cache = cache_of()
    rows = [placed(cache, 5) for _ in range(30)]
    pool = rows[0].kv.pool
    for row in rows[1:]:
        with memory_runs_out(0, ALLOCATE):
            pool.remove(row.kv)
    assert_holds(cache, rows[0])
    before = cache.nbytes
    pool.remove(placed(cache, 5).kv)
    assert cache.nbytes < before / 2, "and what it left is given back when there is room again"


class Texts(RuleBasedStateMachine):
    """Any order of rows that come, decode, outgrow their class and leave, with memory that runs out at any point."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = cache_of()
        self.rows: list = []

    @rule(computed=st.integers(1, 150), fails_at=st.none() | st.integers(0, 7))
    def come(self, computed: int, fails_at: int | None) -> None:
        row = read(self.cache, computed)
        try:
            with memory_runs_out(fails_at, ALLOCATE):
                row.kv = self.cache.place(row, row.kv, computed)
            self.rows.append(row)
        except torch.OutOfMemoryError:
            assert fails_at is not None

    @precondition(lambda self: self.rows)
    @rule(which=st.integers(0, 9), count=st.integers(1, 70), fails_at=st.none() | st.integers(0, 7))
    def go_on(self, which: int, count: int, fails_at: int | None) -> None:
        row = self.rows[which % len(self.rows)]
        for _ in range(min(count, CONTEXT - row.computed)):
            try:
                with memory_runs_out(fails_at, ALLOCATE):
                    row.kv = self.cache.widen(row.kv, row.computed)
            except torch.OutOfMemoryError:
                assert fails_at is not None
                return
            decode(self.cache, row)

    @precondition(lambda self: self.rows)
    @rule(which=st.lists(st.integers(0, 9), min_size=1, max_size=5))
    def leave(self, which: list[int]) -> None:
        for index in which:
            if self.rows:
                row = self.rows.pop(index % len(self.rows))
                row.kv.pool.remove(row.kv)

    @invariant()
    def each_row_holds_its_text_and_nobody_else_is_there(self) -> None:
        for row in self.rows:
            assert_holds(self.cache, row)
        assert sum(len(pool.slots) for pool in self.cache.pools) == len(self.rows)
        for pool in self.cache.pools:
            for held in (*pool.keys, *pool.values):
                assert not held[:, len(pool.slots) :].any(), "free slots are empty"

    def teardown(self) -> None:
        self.leave([0] * len(self.rows))
        assert self.cache.nbytes == 0


class CopiedTexts(Texts):
    """The same where slots are copied when their number changes."""

    def __init__(self) -> None:
        super().__init__()
        self.patched = patch("server.engine.kv.slot_memory", CopiedSlots)
        self.patched.start()

    def teardown(self) -> None:
        self.patched.stop()
        super().teardown()


FEW = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestTexts, TestCopiedTexts = Texts.TestCase, CopiedTexts.TestCase
TestTexts.settings = TestCopiedTexts.settings = FEW
