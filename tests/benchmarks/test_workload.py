from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest

from benchmarks.models import Model
from benchmarks.suites.mixes import distinct_autoencoders, distinct_vectors, half_switched, mixed
from benchmarks.workload import Intervention, Work, chats, equal, lengths, staggered, work_from_json

MODEL = Model("m", "/nowhere", layers=4, width=8, vocab=100, kv_width=8, context=64)
MAKERS: dict[str, Callable[[int], Work]] = {
    "equal": lambda seed: equal(5, 8, 3, 100, seed, half_switched(MODEL)),
    "lengths": lambda seed: lengths([9, 2, 2], 3, 100, seed),
    "staggered": lambda seed: staggered(20, 10.0, (2, 8), (1, 4), 100, seed, mixed(MODEL)),
    "chats": lambda seed: chats(3, 16, (2, 5), 4, 100, seed),
}


def shape(work: Work) -> object:
    """All of a work but its token ids."""
    bare = [replace(request, prompt=(0,) * len(request.prompt)) for request in work.requests]
    return bare, work.one_at_a_time


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_equal_seeds_give_equal_work_and_other_seeds_only_other_tokens(make: Callable[[int], Work]) -> None:
    assert make(3) == make(3)
    assert shape(make(3)) == shape(make(4))
    assert make(3).requests[0].prompt != make(4).requests[0].prompt


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_work_survives_the_journey_to_a_worker(make: Callable[[int], Work]) -> None:
    assert work_from_json(json.loads(json.dumps(asdict(make(1))))) == make(1)


def test_staggered_requests_arrive_in_order_at_the_asked_rate_with_lengths_in_range() -> None:
    work = staggered(400, 20.0, (8, 128), (16, 128), 1000)
    arrivals = [request.arrival_s for request in work.requests]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] == 0.0
    assert 15 < arrivals[-1] < 25
    assert {8, 128} <= {len(request.prompt) for request in work.requests} <= set(range(8, 129))
    assert {request.new_tokens for request in work.requests} <= set(range(16, 129))


def test_chats_share_the_system_prompt_whatever_the_seed_and_nothing_after_it() -> None:
    one, other = chats(3, 16, (2, 5), 4, 1000, 1), chats(3, 16, (2, 5), 4, 1000, 2)
    prompts = [request.prompt for work in (one, other) for request in (*work.primer, *work.requests)]
    assert len({prompt[:16] for prompt in prompts}) == 1
    assert len({prompt[16:] for prompt in prompts}) == len(prompts)


def test_warm_up_waits_for_nobody() -> None:
    warm = MAKERS["staggered"](0).warm_up()
    assert {(request.arrival_s, request.new_tokens) for request in warm.requests} == {(0.0, 2)}
    assert [r.prompt for r in warm.requests] == [r.prompt for r in MAKERS["staggered"](0).requests]


def test_mixes() -> None:
    assert [len(half_switched(MODEL)(i)) for i in range(4)] == [1, 0, 1, 0]
    assert len({distinct_autoencoders(MODEL)(i) for i in range(32)}) == 32
    assert len({tuple(distinct_vectors(MODEL)(i)) for i in range(32)}) == 32
    assert len({tuple(distinct_vectors(MODEL, 4)(i)) for i in range(32)}) == 4
    assert [spec.layer for spec in distinct_vectors(MODEL, None, 3)(0)] == [2, 3, 0]
    kinds = [mixed(MODEL)(i) for i in range(32)]
    assert len({tuple(chosen) for chosen in kinds}) == 32
    assert {spec.kind for chosen in kinds for spec in chosen} == {"vector", "autoencoder"}
    assert {spec.layer for chosen in kinds for spec in chosen if spec.kind == "vector"} == {0, 1, 2, 3}
    assert mixed(MODEL)(0) == (Intervention("vector", 0, 0),)
