"""A request's life: every way in, every way out, and that each way gives everything back."""

import threading
import time

import pytest

from server.engine.request import GenerationRequest, InterventionUpdate
from server.errors import Conflict, ContextLengthExceeded, InvalidRequest, NotFound, Overloaded, Unavailable
from server.types import Failed, Finished
from tests.server.engine.conftest import LONG, PROMPT, Harness, assert_all_free, greedy
from tests.server.engine.interventions import switch, vector


def request_of(id: str, prompt=PROMPT, sampling=None, interventions=()) -> GenerationRequest:
    return GenerationRequest(id, tuple(prompt), sampling or greedy(), tuple(interventions))


def state_of(harness: Harness, id: str) -> str:
    return next(info.state for info in harness.engine.generations() if info.id == id)


# -- ways in --------------------------------------------------------------------------------------------------------


def test_a_running_id_cannot_be_used_twice(harness):
    harness.submit(PROMPT, id="same")
    with pytest.raises(Conflict, match="same"):
        harness.submit(PROMPT, id="same")
    harness.run()
    harness.submit(PROMPT, id="same")
    assert isinstance(harness.run()["same"].end, Finished)
    assert_all_free(harness)


def test_more_requests_than_places(llama, make_harness):
    harness = make_harness(llama, max_batch=2, max_waiting=3)
    ids = [harness.submit(PROMPT, greedy(4)) for _ in range(5)]
    with pytest.raises(Overloaded, match="2 running and 3 waiting"):
        harness.submit(PROMPT)
    harness.step()
    assert [info.state for info in harness.engine.generations()] == ["decode"] * 2 + ["waiting"] * 3
    outcomes = harness.run()
    assert all(isinstance(outcomes[id_].end, Finished) for id_ in ids)
    assert_all_free(harness)


def test_prompt_and_max_tokens_have_to_fit(harness):
    context = harness.engine.limits.context
    with pytest.raises(ContextLengthExceeded, match=str(context)):
        harness.submit([1] * (context - 3), greedy(4))
    outcome = harness.alone([1] * (context - 4), greedy(4))
    assert outcome.end.completion_tokens == 4


@pytest.mark.parametrize(
    ("prompt", "sampling", "param"),
    [
        ([], greedy(), "prompt"),
        ([5, 256], greedy(), "prompt"),
        ([-1], greedy(), "prompt"),
        ([5], greedy(logit_bias={256: 1.0}), "logit_bias"),
    ],
)
def test_what_would_end_a_whole_batch_is_refused_before(harness, prompt, sampling, param):
    with pytest.raises(InvalidRequest) as caught:
        harness.submit(prompt, sampling)
    assert caught.value.param == param
    assert_all_free(harness)


def test_listing_shows_owner_progress_and_interventions(harness):
    harness.engine.submit(
        GenerationRequest("a", tuple(PROMPT), greedy(), (switch(strength=0.5),), "alice"), lambda _event: None
    )
    for _ in range(3):
        harness.step()
    (info,) = harness.engine.generations()
    assert (info.id, info.owner, info.state) == ("a", "alice", "decode")
    assert (info.prompt_tokens, info.completion_tokens) == (8, 3)
    assert info.interventions == (("switch-autoencoder-0", 0.5),)


# -- ways out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 6])
def test_cancelling_at_any_phase_gives_everything_back(llama, make_harness, steps):
    """A prompt of 150 tokens is read in three chunks of 64."""
    harness = make_harness(llama)
    id_ = harness.submit(LONG, greedy(40), (switch(), vector(seed=2)))
    for _ in range(steps):
        harness.step()
    assert state_of(harness, id_) == {0: "waiting", 1: "prefill", 2: "prefill"}.get(steps, "decode")
    before = list(harness.outcomes[id_].tokens)
    harness.engine.cancel(id_)
    assert harness.engine.generations() == []
    harness.engine.cancel(id_)
    harness.run()
    assert harness.outcomes[id_].tokens == before
    assert harness.outcomes[id_].end is None
    assert_all_free(harness)


def test_cancelling_among_others_changes_nobody(harness):
    expected = harness.alone(PROMPT).tokens
    ids = [harness.submit(PROMPT, interventions=(switch(strength=0.0),)) for _ in range(6)]
    for index in range(5):
        harness.step()
        harness.engine.cancel(ids[(index * 2) % 5])
    harness.run()
    assert harness.outcomes[ids[-1]].tokens == expected
    assert_all_free(harness)


def test_a_cancelled_id_can_be_used_again_at_once(harness):
    """Commands about the old row must not reach the new one."""
    expected = harness.alone(PROMPT).tokens
    harness.submit(PROMPT, interventions=(switch(),), id="again")
    harness.step()
    harness.engine.cancel("again")
    harness.engine.cancel("again")
    harness.submit(PROMPT, id="again")
    assert harness.run()["again"].tokens == expected
    assert_all_free(harness)


def test_a_plan_is_not_taken_over_by_a_later_row_of_the_same_id(harness):
    """Same id, same revision, but another intervention switched on mid-stream."""
    first, second = vector(strength=3.0, seed=1), vector(strength=3.0, seed=2)

    def run(update, id_) -> list[int]:
        harness.submit(PROMPT, id=id_)
        for _ in range(3):
            harness.step()
        harness.engine.update(id_, InterventionUpdate(steering=(update,)))
        return harness.run()[id_].tokens

    alone = run(second, "other")
    run(first, "same")
    assert run(second, "same") == alone
    assert_all_free(harness)


def test_unknown_ids(harness):
    harness.engine.cancel("nobody")
    with pytest.raises(NotFound, match="nobody"):
        harness.engine.update("nobody", InterventionUpdate())


@pytest.mark.parametrize("fails_at", [1, 2, 5, 6])
def test_a_receiver_that_raises_ends_its_own_row_only(harness, fails_at):
    """Five pieces and an end; raising at the last ones must not give a meter back twice."""
    seen = []

    def sink(event):
        seen.append(event)
        if len(seen) == fails_at:
            raise RuntimeError("Event loop is closed")

    expected = harness.alone(PROMPT).tokens
    harness.engine.submit(request_of("closed", sampling=greedy(5), interventions=(switch(),)), sink)
    other = harness.submit(PROMPT, interventions=(switch(strength=0.0),))
    assert harness.run()[other].tokens == expected
    assert len(seen) == fails_at, "an event after the receiver was gone"
    assert_all_free(harness)
    meters = harness.engine._runner.meters
    assert len({meters.open() for _ in range(4)}) == 4


def test_a_receiver_may_cancel_from_inside(harness):
    seen = []

    def sink(event):
        seen.append(event)
        harness.engine.cancel("me")

    harness.engine.submit(request_of("me"), sink)
    harness.run()
    assert len(seen) == 1
    assert_all_free(harness)


# -- the thread -----------------------------------------------------------------------------------------------------


def test_a_thread_that_stumbles_answers_everybody_and_goes_on(llama, make_harness, monkeypatch):
    harness = make_harness(llama)
    scheduler, next_batch = harness.engine._scheduler, harness.engine._scheduler.next_batch
    expected = harness.alone(PROMPT, greedy(4)).tokens

    def raising():
        monkeypatch.setattr(scheduler, "next_batch", next_batch)
        raise RuntimeError("lost count")

    ids = [harness.submit(PROMPT, greedy(4), (switch(),)) for _ in range(3)]
    monkeypatch.setattr(scheduler, "next_batch", raising)
    harness.engine.start()
    while harness.engine.generations():
        time.sleep(0.01)
    assert [harness.outcomes[i].end.code for i in ids] == ["engine_failed"] * 3
    assert harness.engine._thread.is_alive()
    later = harness.submit(PROMPT, greedy(4))
    harness.engine.drain(timeout_s=30)
    assert harness.outcomes[later].tokens == expected
    assert harness.engine._runner.meters.in_use == 0


def test_a_thread_that_is_lost_answers_everybody_and_takes_nothing_new(llama, make_harness, monkeypatch):
    """As after an error of the device, when giving back what was taken raises as well."""
    harness = make_harness(llama)

    def raising(*_arguments):
        raise RuntimeError("device lost")

    monkeypatch.setattr(harness.engine._scheduler, "next_batch", raising)
    monkeypatch.setattr(harness.engine._scheduler, "release", raising)
    monkeypatch.setattr(threading, "excepthook", lambda _arguments: None)
    ids = [harness.submit(PROMPT, greedy(4), (switch(),)) for _ in range(3)]
    harness.engine.start()
    harness.engine._thread.join(timeout=30)
    assert [harness.outcomes[i].end.code for i in ids] == ["engine_failed"] * 3
    assert not harness.engine.healthy
    with pytest.raises(Unavailable):
        harness.submit(PROMPT)


def test_draining_finishes_what_runs_and_takes_nothing_new(llama, make_harness):
    harness = make_harness(llama)
    harness.engine.start()
    assert harness.engine.healthy
    ids = [harness.submit(PROMPT, greedy(6)) for _ in range(3)]
    harness.engine.drain(timeout_s=60)
    assert all(isinstance(harness.outcomes[i].end, Finished) for i in ids)
    assert not harness.engine.healthy
    with pytest.raises(Unavailable):
        harness.submit(PROMPT)


@pytest.mark.parametrize("end", [lambda engine: engine.drain(timeout_s=0), lambda engine: engine.stop()])
def test_what_still_runs_at_the_end_is_told(llama, make_harness, end):
    harness = make_harness(llama, max_batch=1)
    harness.engine.start()
    ids = [harness.submit(PROMPT, greedy(240)) for _ in range(3)]
    end(harness.engine)
    assert [harness.outcomes[i].end for i in ids] == [Failed("shutdown", "the server is shutting down")] * 3
    assert harness.engine.generations() == []
