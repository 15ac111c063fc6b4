"""Positions against a slow reference: which token of the text is meant, one token at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.interventions.positions import active_offsets, count_active, next_change
from server.types import ALL, NONE, Apply, Positions


def means(positions: Positions, position: int, total: int | None) -> bool:
    """Whether ``positions`` holds ``position``; ``total`` is the length of the prompt, None for generated text."""

    def absolute(index: int) -> int:
        return index + total if index < 0 and total is not None else index

    match positions.kind:
        case "all":
            return True
        case "none":
            return False
        case "last":
            return total is not None and position == total - 1
        case "window":
            stop = positions.stop
            return absolute(positions.start) <= position and (stop is None or position < absolute(stop))
        case _:
            return position in {absolute(index) for index in positions.indices}


def reference(apply: Apply, start: int, count: int, prompt_len: int) -> list[int]:
    found = []
    for offset in range(count):
        position = start + offset
        if position < prompt_len:
            hit = means(apply.prompt, position, prompt_len)
        else:
            hit = means(apply.generation, position - prompt_len, None)
        if hit:
            found.append(offset)
    return found


def spans(low: int) -> st.SearchStrategy[Positions]:
    index = st.integers(low, 12)
    return st.one_of(
        st.sampled_from([ALL, NONE]),
        st.builds(Positions, st.just("window"), index, st.none() | index),
        st.builds(Positions, st.just("listed"), indices=st.lists(index, max_size=4).map(tuple)),
    )


@given(
    prompt=spans(-12) | st.just(Positions("last")),
    generation=spans(0),
    start=st.integers(0, 20),
    count=st.integers(1, 12),
    prompt_len=st.integers(1, 12),
)
def test_equals_the_reference(prompt, generation, start, count, prompt_len):
    apply = Apply(prompt, generation)
    assert list(active_offsets(apply, start, count, prompt_len)) == reference(apply, start, count, prompt_len)


@given(apply=st.builds(Apply, spans(-12), spans(0)), prompt_len=st.integers(1, 12), chunk=st.integers(1, 5))
def test_chunks_together_select_what_one_piece_selects(apply, prompt_len, chunk):
    whole = list(active_offsets(apply, 0, 24, prompt_len))
    cut = [
        start + offset for start in range(0, 24, chunk) for offset in active_offsets(apply, start, chunk, prompt_len)
    ]
    assert [p for p in cut if p < 24] == whole


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (Positions("last"), [4]),
        (Positions("window", 1, 3), [1, 2]),
        (Positions("window", -2, None), [3, 4]),
        (Positions("window", -3, -1), [2, 3]),
        (Positions("window", 3, 3), []),
        (Positions("listed", indices=(-1, 0, 9)), [0, 4]),
    ],
)
def test_positions_of_a_prompt_of_five(prompt, expected):
    assert list(active_offsets(Apply(prompt, NONE), 0, 8, 5)) == expected


def test_generated_positions_count_from_the_first_generated_token():
    apply = Apply(NONE, Positions("window", 1, 3))
    assert list(active_offsets(apply, 0, 9, 5)) == [6, 7]
    assert [bool(active_offsets(apply, position, 1, 5)) for position in range(5, 9)] == [False, True, True, False]


def test_counts_of_prompt_and_generated_tokens():
    apply = Apply(Positions("window", 1, 3), Positions("listed", indices=(0, 2)))
    assert count_active(apply, 0, 10, 4) == (2, 2)
    assert count_active(apply, 2, 3, 4) == (1, 1)
    assert count_active(Apply(NONE, NONE), 0, 10, 4) == (0, 0)


@pytest.mark.parametrize(
    "positions",
    [ALL, NONE, Positions("window", 2, 5), Positions("window", 3, None), Positions("listed", indices=(1, 2, 6))],
)
def test_nothing_changes_before_the_next_change(positions):
    acts = [bool(active_offsets(Apply(NONE, positions), 4 + at, 1, 4)) for at in range(12)]
    for at in range(11):
        change = next_change(positions, at)
        assert all(one == acts[at] for one in acts[at : change or 12])
