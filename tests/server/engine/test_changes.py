"""Interventions that are changed while a generation runs, and receipts that add up."""

import pytest

from server.engine.request import InterventionUpdate
from server.errors import NotFound
from server.types import NONE, Apply, Positions
from tests.server.engine.conftest import LONG, PROMPT, assert_all_free, greedy
from tests.server.engine.interventions import switch, vector

pytestmark = pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])


def counts(outcome) -> list[tuple]:
    return [(r.kind, r.strength, r.prompt_tokens, r.generated_tokens) for r in outcome.end.receipts]


@pytest.mark.parametrize("prefill_tokens", [16, 64, 512])
def test_every_token_is_touched_once(llama, make_harness, prefill_tokens):
    """The last token drawn is never read, so it is not touched."""
    harness = make_harness(llama, prefill_tokens=prefill_tokens)
    harness.submit(LONG[:90], greedy(3))
    outcome = harness.alone(LONG, greedy(10), (switch(layers=(0, 2)), vector(strength=0.5)))
    assert counts(outcome) == [("switch", 1.0, 150, 9), ("add", 0.5, 150, 9)]
    assert all(0 < r.mean_relative_change < 100 for r in outcome.end.receipts)


def test_switching_on_in_mid_stream(harness):
    plain = harness.alone(PROMPT, greedy(20)).tokens
    id_ = harness.submit(PROMPT, greedy(20))
    for _ in range(5):
        harness.step()
    harness.engine.update(id_, InterventionUpdate(steering=(vector(strength=4.0),)))
    outcome = harness.run()[id_]
    assert outcome.tokens[:5] == plain[:5]
    assert outcome.tokens != plain
    assert counts(outcome) == [("add", 4.0, 0, 15)]
    later = Apply(NONE, Positions("window", 4, None))
    assert outcome.tokens == harness.alone(PROMPT, greedy(20), (vector(strength=4.0, apply=later),)).tokens


def test_switching_off_keeps_the_receipt(harness):
    id_ = harness.submit(PROMPT, greedy(20), (switch(), vector(seed=3)))
    for _ in range(5):
        harness.step()
    harness.engine.update(id_, InterventionUpdate(switch=()))
    outcome = harness.run()[id_]
    assert counts(outcome) == [("add", 1.0, 8, 19), ("switch", 1.0, 8, 4)]
    first = Apply(generation=Positions("window", 0, 4))
    assert outcome.tokens == harness.alone(PROMPT, greedy(20), (switch(apply=first), vector(seed=3))).tokens
    assert_all_free(harness)


def test_another_strength_goes_on_counting(harness):
    id_ = harness.submit(PROMPT, greedy(20), (switch(), vector(seed=3)))
    for _ in range(5):
        harness.step()
    harness.engine.update(id_, InterventionUpdate(switch=(switch(strength=0.0),)))
    assert harness.engine.generations()[0].interventions[0] == ("switch-autoencoder-0", 1.0)
    harness.step()
    assert harness.engine.generations()[0].interventions[0] == ("switch-autoencoder-0", 0.0)
    for _ in range(4):
        harness.step()
    harness.engine.update(id_, InterventionUpdate(switch=(switch(strength=0.5),)))
    outcome = harness.run()[id_]
    assert counts(outcome) == [("switch", 0.5, 8, 14), ("add", 1.0, 8, 19)]
    assert_all_free(harness)


def test_a_change_between_chunks_of_a_prompt(llama, make_harness):
    harness = make_harness(llama, prefill_tokens=50)
    id_ = harness.submit(LONG, greedy(5), (vector(),))
    harness.step()
    harness.engine.update(id_, InterventionUpdate(steering=(vector(seed=5),)))
    outcome = harness.run()[id_]
    assert sorted(counts(outcome)) == [("add", 1.0, 50, 0), ("add", 1.0, 100, 4)]


def test_a_window_that_ends_while_decoding(harness):
    """The plan is kept between steps, but not longer than the window."""
    apply = Apply(NONE, Positions("window", 2, 6))
    outcome = harness.alone(PROMPT, greedy(20), (vector(strength=4.0, apply=apply), vector(seed=1, apply=Apply(NONE))))
    assert [c[2:] for c in counts(outcome)] == [(0, 4), (0, 19)]


def test_a_change_after_the_end_is_not_an_error_of_the_engine(harness):
    id_ = harness.submit(PROMPT, greedy(3), (switch(),))
    while harness.outcomes[id_].end is None:
        harness.step()
        if harness.outcomes[id_].end is None:
            harness.engine.update(id_, InterventionUpdate(switch=()))
    with pytest.raises(NotFound):
        harness.engine.update(id_, InterventionUpdate(switch=()))
    assert_all_free(harness)
