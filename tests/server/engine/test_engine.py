"""A request's life: every way in, every way out, and that each way gives everything back."""

import pytest
import torch

from server.engine.request import GenerationRequest, InterventionUpdate
from server.errors import Conflict, ContextLengthExceeded, InvalidRequest, NotFound, Overloaded, Unavailable
from server.types import NONE, Apply, Failed, Finished, Positions, SamplingParams
from tests.server.engine.conftest import Harness, greedy, tiny_model
from tests.server.engine.interventions import switch, vector

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
LONG = list(range(1, 151))


def assert_all_free(harness: Harness) -> None:
    harness.step()
    engine = harness.engine
    assert engine.generations() == []
    assert engine._runner.meters.in_use == 0
    assert engine._runner.cache.nbytes == 0
    assert (engine._scheduler.live, engine._scheduler.waiting) == (0, 0)


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


# -- ends of a text -------------------------------------------------------------------------------------------------


def test_the_end_is_what_the_generation_config_says(make_harness):
    loaded = tiny_model("llama")
    plain = make_harness(loaded).alone(PROMPT, greedy(24)).tokens
    loaded.model.generation_config.eos_token_id = [plain[5], 250]
    harness = make_harness(loaded)
    outcome = harness.alone(PROMPT, SamplingParams(max_tokens=24, temperature=0.0))
    assert outcome.tokens == plain[: plain.index(plain[5])]
    assert outcome.end.reason == "stop"
    assert outcome.end.completion_tokens == len(outcome.tokens) + 1, "the end was drawn too"
    ignoring = harness.alone(PROMPT, greedy(24))
    assert (ignoring.tokens, ignoring.end.reason) == (plain, "length")


def test_the_model_decides_where_there_is_no_generation_config(make_harness):
    loaded = tiny_model("llama")
    plain = make_harness(loaded).alone(PROMPT, greedy(24)).tokens
    loaded.model.generation_config.eos_token_id = None
    loaded.model.config.eos_token_id = plain[3]
    outcome = make_harness(loaded).alone(PROMPT, SamplingParams(max_tokens=24, temperature=0.0))
    assert outcome.tokens == plain[: plain.index(plain[3])]


def test_stop_strings(harness):
    whole = harness.alone(PROMPT, greedy(40))
    assert whole.end.reason == "length"
    text = whole.text
    middle, start = text[7:10], text[:2]
    for stops, expected in (
        ((middle,), text[: text.index(middle)]),
        (("never-there", middle), text[: text.index(middle)]),
        ((middle, start), ""),
    ):
        outcome = harness.alone(PROMPT, greedy(40, stop=stops))
        assert (outcome.text, outcome.end.reason) == (expected, "stop")
        assert outcome.end.completion_tokens < 40
    assert harness.alone(PROMPT, greedy(40, stop=("never-there",))).text == text


def test_text_held_back_for_a_stop_string_comes_with_the_end(harness):
    text = harness.alone(PROMPT, greedy(12)).text
    outcome = harness.alone(PROMPT, greedy(12, stop=(text[-1] + "-never",)))
    assert (outcome.text, outcome.end.reason) == (text, "length")


# -- log-probabilities and seeds ------------------------------------------------------------------------------------


def forward(harness: Harness, ids) -> torch.Tensor:
    with torch.inference_mode():
        return harness.loaded.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def test_logprobs_are_those_of_a_plain_forward(harness):
    for _ in range(3):
        harness.submit(PROMPT[:4], greedy(9, logprobs=1))
    outcome = harness.alone(PROMPT, greedy(9, logprobs=4))
    expected = forward(harness, PROMPT + outcome.tokens)[len(PROMPT) - 1 : -1]
    for logprob, token, row in zip(outcome.logprobs, outcome.tokens, expected, strict=True):
        assert (logprob.token_id, logprob.logprob) == (token, pytest.approx(float(row[token]), abs=1e-4))
        assert [p for _, p in logprob.top] == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)
        assert logprob.top[0][0] == token


@pytest.mark.parametrize("prefill_tokens", [7, 64, 512])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_prompt_logprobs_across_chunks(llama, make_harness, prefill_tokens, max_tokens):
    harness = make_harness(llama, prefill_tokens=prefill_tokens)
    others = [harness.submit(LONG[:n], greedy(2)) for n in (3, 40)]
    outcome = harness.alone(LONG, greedy(max_tokens, prompt_logprobs=2))
    expected = forward(harness, LONG)
    assert len(outcome.prompt.logprobs) == len(LONG) - 1
    for i, logprob in enumerate(outcome.prompt.logprobs):
        assert logprob.token_id == LONG[i + 1]
        assert logprob.logprob == pytest.approx(float(expected[i, LONG[i + 1]]), abs=1e-3)
        assert [p for _, p in logprob.top] == pytest.approx(expected[i].topk(2).values.tolist(), abs=1e-3)
    assert (len(outcome.tokens), outcome.end.reason) == (max_tokens, "length")
    assert outcome.end.completion_tokens == max_tokens
    assert all(
        harness.outcomes[id_].tokens == harness.alone(LONG[:n], greedy(2)).tokens
        for id_, n in zip(others, (3, 40), strict=True)
    )


def test_a_prompt_of_one_token_has_no_scored_token(harness):
    assert harness.alone([7], greedy(0, prompt_logprobs=1)).prompt.logprobs == ()


def test_a_prompt_spoilt_at_one_position_fails(harness):
    """In the last block nothing carries the NaN to later positions: only that token's score shows it."""
    apply = Apply(Positions("listed", indices=(2,)), NONE)
    outcome = harness.alone(
        PROMPT, greedy(4, prompt_logprobs=0), (vector(layers=(2,), strength=1e38, size=1e30, apply=apply),)
    )
    assert outcome.end.code == "non_finite"
    assert (outcome.prompt, outcome.tokens) == (None, [])
    assert_all_free(harness)


def test_seeds(harness):
    def sample(seed, **settings):
        return harness.alone(PROMPT, SamplingParams(max_tokens=16, seed=seed, ignore_eos=True, **settings)).tokens

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(None) != sample(None)
    assert sample(1, top_k=1) == harness.alone(PROMPT, greedy(16)).tokens


# -- changes of a running generation --------------------------------------------------------------------------------


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


# -- failures of the forward ----------------------------------------------------------------------------------------


def fail_once(harness: Harness, monkeypatch, error: Exception) -> None:
    model = harness.engine._runner._model
    forward = model.forward

    def raising(**arguments):
        monkeypatch.setattr(model, "forward", forward)
        raise error

    monkeypatch.setattr(model, "forward", raising)


def test_a_forward_that_raises_ends_its_batch_and_no_more(llama, make_harness, monkeypatch):
    harness = make_harness(llama, max_batch=3)
    expected = harness.alone(PROMPT).tokens
    ids = [harness.submit(PROMPT, interventions=(switch(strength=0.0),)) for _ in range(5)]
    harness.step()
    fail_once(harness, monkeypatch, ValueError("broken"))
    outcomes = harness.run()
    assert [outcomes[i].end.code for i in ids[:3]] == ["engine_failed"] * 3
    assert "broken" not in outcomes[ids[0]].end.message
    assert [outcomes[i].tokens for i in ids[3:]] == [expected] * 2
    assert_all_free(harness)


def test_running_out_of_memory_halves_what_is_computed_at_once(llama, make_harness, monkeypatch):
    harness = make_harness(llama, max_batch=8)
    ids = [harness.submit(PROMPT, greedy(6)) for _ in range(12)]
    harness.step()
    fail_once(harness, monkeypatch, torch.OutOfMemoryError("no memory"))
    harness.step()
    assert [harness.outcomes[i].end.code for i in ids[:8]] == ["out_of_memory"] * 8
    harness.step()
    assert harness.engine._scheduler.live == 4
    assert all(isinstance(harness.run()[i].end, Finished) for i in ids[8:])
    assert_all_free(harness)


def test_one_large_request_does_not_slow_down_all_that_follow(llama, make_harness, monkeypatch):
    harness = make_harness(llama, max_batch=8)
    harness.submit(LONG)
    fail_once(harness, monkeypatch, torch.OutOfMemoryError("no memory"))
    harness.run()
    assert harness.engine._scheduler.max_batch == 8


# -- the thread -----------------------------------------------------------------------------------------------------


def test_a_thread_that_stumbles_answers_everybody_and_goes_on(llama, make_harness, monkeypatch):
    harness = make_harness(llama)
    runner, rearrange = harness.engine._runner, harness.engine._runner.rearrange

    def raising(moves, live):
        monkeypatch.setattr(runner, "rearrange", rearrange)
        raise RuntimeError("no more memory for a move")

    ids = [harness.submit(PROMPT, greedy(4), (switch(),)) for _ in range(3)]
    monkeypatch.setattr(runner, "rearrange", raising)
    harness.engine.start()
    harness.engine.drain(timeout_s=30)
    assert [harness.outcomes[i].end.code for i in ids] == ["engine_failed"] * 3
    assert harness.engine._thread.is_alive()


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
