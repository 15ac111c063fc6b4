"""Slots and columns of the cache against lists."""

import pytest
import torch

from server.engine.kv import KvWindow, RowCache
from server.engine.scheduler import Move

HEADS, SIZE = 2, 4


def states(slots, columns) -> torch.Tensor:
    """``(B, H, Q, E)`` whose values tell slot and column."""
    b, q = len(slots), len(columns[0])
    made = torch.empty(b, HEADS, q, SIZE)
    for i, slot in enumerate(slots):
        for j, column in enumerate(columns[i]):
            made[i, :, j] = 1000 * (slot + 1) + column
    return made


def write(cache: RowCache, slots, columns, attended=None):
    attended = attended or max(max(row) for row in columns) + 1
    cache.reserve(max(slots) + 1, attended)
    cache.aim(KvWindow(slots, torch.tensor(columns), attended))
    for layer in range(2):
        keys, values = cache.update(states(slots, columns), -states(slots, columns), layer)
    return keys, values


def held(cache: RowCache, slot: int, columns: int) -> list[float]:
    cache.aim(KvWindow([slot], torch.zeros(1, 0, dtype=torch.long), columns))
    keys, values = cache.update(torch.zeros(1, HEADS, 0, SIZE), torch.zeros(1, HEADS, 0, SIZE), 1)
    assert torch.equal(keys, -values)
    return keys[0, 0, :, 0].tolist()


@pytest.fixture
def cache():
    return RowCache(layers=2)


def test_each_row_reads_its_own_columns(cache):
    write(cache, [0, 1, 2], [[0, 1], [0, 1], [0, 1]])
    keys, _ = write(cache, [0, 1], [[2], [2]])
    assert keys[:, 0, :, 0].tolist() == [[1000, 1001, 1002], [2000, 2001, 2002]]


def test_scattered_slots_read_as_asked(cache):
    write(cache, [0, 1, 2, 3], [[0]] * 4)
    keys, _ = write(cache, [3, 1], [[1], [1]])
    assert keys[:, 0, :, 0].tolist() == [[4000, 4001], [2000, 2001]]


def test_rows_of_different_length_share_a_forward(cache):
    write(cache, [0, 1], [[0, 1, 2], [0, 1, 2]])
    keys, _ = write(cache, [0, 1], [[3], [1]])
    assert keys[:, 0, :, 0].tolist() == [[1000, 1001, 1002, 1003], [2000, 2001, 2002, 0]]


def test_growing_keeps_what_is_there(cache):
    write(cache, [0], [[0, 1]])
    for slot in range(1, 30):
        write(cache, [slot], [[0]])
    write(cache, [3], [[700]])
    assert held(cache, 0, 3) == [1000, 1001, 0]
    assert held(cache, 29, 1) == [30000]
    assert held(cache, 3, 701)[700] == 4700


def test_growing_one_slot_at_a_time_seldom_copies(cache):
    sizes = set()
    for slot in range(64):
        write(cache, [slot], [[0]])
        sizes.add(cache.nbytes)
    assert len(sizes) <= 16


def test_moves_are_carried_out_in_order(cache):
    write(cache, [0, 1, 2], [[0, 1]] * 3)
    cache.rearrange([Move("swap", 0, 2), Move("clear", 1, 1), Move("copy", 2, 1), Move("clear", 2, 2)])
    assert [held(cache, slot, 2) for slot in range(3)] == [[3000, 3001], [1000, 1001], [0, 0]]


def test_a_slot_that_was_never_computed_needs_no_move(cache):
    write(cache, [0], [[0]])
    cache.rearrange([Move("clear", 9, 9), Move("copy", 9, 0)])
    assert held(cache, 0, 1) == [1000]


def test_clearing_leaves_no_nan(cache):
    write(cache, [0, 1], [[0], [0]])
    cache.aim(KvWindow([1], torch.tensor([[0]]), 1))
    for layer in range(2):
        cache.update(torch.full((1, HEADS, 1, SIZE), torch.nan), torch.full((1, HEADS, 1, SIZE), torch.inf), layer)
    cache.rearrange([Move("clear", 1, 1)])
    assert held(cache, 1, 1) == [0]


def test_release_frees_everything(cache):
    write(cache, [0, 1], [[0], [0]])
    assert cache.nbytes > 0
    cache.release()
    assert cache.nbytes == 0
    write(cache, [0], [[0]])
    assert held(cache, 0, 2) == [1000, 0]


@pytest.mark.parametrize("fails_at", range(4))
def test_memory_that_runs_out_while_growing_spoils_nothing(cache, fails_at, monkeypatch):
    write(cache, [0, 1], [[0, 1]] * 2)
    zeros, calls = torch.Tensor.new_zeros, []

    def short_of_memory(self, *shape):
        calls.append(shape)
        if len(calls) == fails_at + 1:
            raise torch.OutOfMemoryError("no memory")
        return zeros(self, *shape)

    monkeypatch.setattr(torch.Tensor, "new_zeros", short_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        cache.reserve(200, 2)
    monkeypatch.undo()
    write(cache, [0, 1], [[2], [2]])
    write(cache, [100], [[0]])
    write(cache, [5], [[100]])
    assert held(cache, 100, 1) == [101000]
    assert [held(cache, slot, 3) for slot in (0, 1)] == [[1000, 1001, 1002], [2000, 2001, 2002]]
    assert held(cache, 5, 101)[100] == 6100
