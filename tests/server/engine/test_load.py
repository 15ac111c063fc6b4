"""Many requests: whatever becomes of them, the next one is answered soon and nothing is left behind."""

import gc
import hashlib
import random

import pytest

from server.engine.request import InterventionUpdate
from server.engine.row import Row
from server.types import Failed, Finished, SamplingParams
from tests.server.engine.conftest import assert_all_free, greedy
from tests.server.engine.interventions import switch, vector

SETTINGS = [
    (),
    (),
    (switch(),),
    (vector(strength=2.0),),
    (switch(strength=0.5), vector("ablate")),
    (vector(strength=1e38),),
]


def prompt_of(rng: random.Random, longest: int) -> list[int]:
    return [rng.randrange(1, 256) for _ in range(rng.randrange(1, longest))]


def state_of(loaded) -> tuple[str, list]:
    """sha256 over names and bytes of the weights, and every hook of every module."""
    total = hashlib.sha256()
    for name, tensor in loaded.model.state_dict().items():
        total.update(name.encode() + tensor.numpy().tobytes())
    modules = loaded.model.modules()
    return total.hexdigest(), [[*module._forward_hooks, *module._forward_pre_hooks] for module in modules]


@pytest.mark.parametrize("steps", [1, 10, 40])
def test_a_fresh_request_is_answered_soon_after_all_others_are_gone(llama, make_harness, steps):
    harness = make_harness(llama, max_batch=64, max_waiting=64)
    expected = harness.alone([1, 2, 3], greedy(8)).tokens
    rng = random.Random(5)
    ids = [harness.submit(prompt_of(rng, 100), greedy(150), SETTINGS[i % 5]) for i in range(128)]
    for _ in range(steps):
        harness.step()
    for id_ in ids:
        harness.engine.cancel(id_)
    fresh = harness.submit([1, 2, 3], greedy(8))
    for _ in range(8):
        harness.step()
    assert harness.outcomes[fresh].tokens == expected
    assert isinstance(harness.outcomes[fresh].end, Finished)
    assert not any(harness.outcomes[id_].end for id_ in ids)
    assert_all_free(harness)


def test_a_fresh_request_is_answered_soon_beside_all_others(llama, make_harness):
    """63 rows decode and long prompts are being read: a short one gets its first token in the next forward."""
    harness = make_harness(llama, max_batch=64, max_waiting=64)
    for i in range(61):
        harness.submit([1, 2, 3, i], greedy(100))
    for _ in range(10):
        harness.step()
    for _ in range(2):
        harness.submit(list(range(1, 200)), greedy(4))
    harness.step()
    fresh = harness.submit([1, 2, 3], greedy(4))
    harness.step()
    assert len(harness.outcomes[fresh].tokens) == 1
    for _ in range(3):
        harness.step()
    assert isinstance(harness.outcomes[fresh].end, Finished)


def test_two_thousand_mixed_requests_leave_nothing(llama, make_harness):
    harness = make_harness(llama, max_batch=32, max_waiting=32, prefill_tokens=128)
    rng = random.Random(6)
    ids: list[str] = []
    cancelled = set()
    for i in range(2000):
        sampling = SamplingParams(max_tokens=rng.randrange(0, 9), temperature=rng.choice([0.0, 1.0]), seed=i)
        ids.append(harness.submit(prompt_of(rng, 80), sampling, rng.choice(SETTINGS)))
        while len(harness.engine.generations()) >= 60:
            harness.step()
        if rng.random() < 0.1:
            gone = rng.choice(ids[-20:])
            cancelled.add(gone)
            harness.engine.cancel(gone)
    outcomes = harness.run()
    ends = {id_: outcome.end for id_, outcome in outcomes.items()}
    assert {id_ for id_, end in ends.items() if end is None} <= cancelled
    assert sum(isinstance(end, Finished) for end in ends.values()) > 1000
    assert {end.code for end in ends.values() if isinstance(end, Failed)} == {"non_finite"}
    assert_all_free(harness)
    gc.collect()
    rows = sum(type(one) is Row for one in gc.get_objects())
    assert rows <= 64, "no more than the last plan may remember"


def test_ten_thousand_toggles_leave_weights_and_hooks_as_they_were(llama, make_harness):
    """By new requests, and in the middle of their generations: strengths, switches and vectors come and go."""
    harness = make_harness(llama, max_batch=64, prefill_tokens=128)
    before = state_of(llama)
    assert sum(map(len, before[1])) > 0
    expected = harness.alone([1, 2, 3], greedy(8)).tokens
    rng = random.Random(7)
    switches = [None, (), *((switch(strength=strength),) for strength in (0.0, 0.25, 1.0))]
    vectors = [None, (), *((vector(strength=strength),) for strength in (0.0, 0.25, 1.0))]
    for _ in range(10_000 // 64 + 1):
        running = [info.id for info in harness.engine.generations()]
        for _ in range(64 - len(running)):
            harness.submit(prompt_of(rng, 20), greedy(rng.randrange(1, 40)), rng.choice(SETTINGS[:-1]))
        for id_ in running:
            harness.engine.update(id_, InterventionUpdate(switch=rng.choice(switches), steering=rng.choice(vectors)))
        harness.step()
    assert {type(outcome.end) for outcome in harness.run().values()} == {Finished}
    assert harness.alone([1, 2, 3], greedy(8)).tokens == expected
    assert state_of(llama) == before
    assert_all_free(harness)
