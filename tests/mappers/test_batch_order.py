from __future__ import annotations

from mappers.batch_order import BatchOrder

LENGTHS = [n % 17 + 1 for n in range(67)]


def test_an_epoch_sees_whole_batches_of_like_length_and_no_row_twice() -> None:
    order = BatchOrder(LENGTHS, 8, seed=0)
    for epoch in range(3):
        batches = [order.at(epoch * 8 + place) for place in range(8)]
        rows = [row for batch in batches for row in batch]
        assert [len(batch) for batch in batches] == [8] * 8
        assert len(set(rows)) == len(rows) == 64
        spread = [max(LENGTHS[row] for row in batch) - min(LENGTHS[row] for row in batch) for batch in batches]
        assert sorted(spread)[-2] <= 5


def test_epochs_and_seeds_differ_but_steps_can_be_asked_for_in_any_order() -> None:
    order = BatchOrder(LENGTHS, 8, seed=0)
    forward = [order.at(step) for step in range(24)]
    assert [BatchOrder(LENGTHS, 8, seed=0).at(step) for step in reversed(range(24))] == forward[::-1]
    assert forward[:8] != forward[8:16]
    assert [BatchOrder(LENGTHS, 8, seed=1).at(step) for step in range(8)] != forward[:8]


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    order = BatchOrder([3, 1, 2], 16, seed=0)
    assert sorted(order.at(0)) == sorted(order.at(9)) == [0, 1, 2]
