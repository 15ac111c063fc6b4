"""Forwards that raise and memory that runs out: who ends, and who goes on as if nothing had been."""

from dataclasses import replace

import pytest
import torch

from server.types import Failed, Finished
from tests.server.engine.conftest import LONG, PROMPT, Harness, assert_all_free, greedy
from tests.server.engine.interventions import gated, switch, vector


def raise_once(monkeypatch, owner, name: str, error: Exception) -> None:
    """The next call of a method raises; later ones do what it did before."""
    method = getattr(owner, name)

    def raising(*_inputs, **_arguments):
        monkeypatch.setattr(owner, name, method)
        raise error

    monkeypatch.setattr(owner, name, raising)


def fail_once(harness: Harness, monkeypatch, error: Exception, part: str = "") -> None:
    """The next forward raises; at once, or where it comes to a part of the model."""
    raise_once(monkeypatch, harness.engine._runner._model.get_submodule(part), "forward", error)


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


@pytest.mark.parametrize("part", ["", "lm_head"])
@pytest.mark.parametrize("error", [ValueError("broken"), torch.OutOfMemoryError("no memory")])
def test_answers_go_on_where_the_forward_fails_that_reads_a_prompt(llama, make_harness, monkeypatch, part, error):
    """Nothing of the failed forward is counted twice, though in the last part of the model all sites have acted."""
    used = (vector(seed=5, strength=3.0), gated(switch(layers=(1, 2)), hold=3))
    harness = make_harness(llama)
    expected = harness.alone(PROMPT, interventions=used)
    answering = harness.submit(PROMPT, interventions=used)
    for _ in range(4):
        harness.step()
    reading = harness.submit(LONG)
    fail_once(harness, monkeypatch, error, part)
    outcomes = harness.run()
    assert isinstance(outcomes[reading].end, Failed)
    assert outcomes[answering].tokens == expected.tokens
    for found, wanted in zip(outcomes[answering].end.receipts, expected.end.receipts, strict=True):
        assert found.mean_relative_change == pytest.approx(wanted.mean_relative_change, rel=1e-4)
        assert replace(found, mean_relative_change=0) == replace(wanted, mean_relative_change=0)
    assert_all_free(harness)


def test_answers_that_cannot_be_computed_by_themselves_end(llama, make_harness, monkeypatch):
    harness = make_harness(llama)
    answering = harness.submit(PROMPT)
    harness.step()
    reading = harness.submit(LONG)
    fail_once(harness, monkeypatch, ValueError("broken"))
    harness.step()
    assert (harness.outcomes[answering].end, harness.outcomes[reading].end.code) == (None, "engine_failed")
    innocent = harness.submit(PROMPT)
    fail_once(harness, monkeypatch, ValueError("broken"))
    harness.step()
    assert harness.outcomes[answering].end.code == "engine_failed"
    assert isinstance(harness.run()[innocent].end, Finished)
    assert_all_free(harness)


def test_one_bad_prompt_after_another_ends_no_answer(llama, make_harness, monkeypatch):
    harness = make_harness(llama, prefix_bytes=1 << 20)
    expected = harness.alone(PROMPT[:4]).tokens
    answering = [harness.submit(PROMPT[:4]) for _ in range(3)]
    harness.step()
    model = harness.engine._runner._model
    forward = model.forward

    def raising(**arguments):
        if arguments["input_ids"].shape[1] > 10:
            raise torch.OutOfMemoryError("no memory")
        return forward(**arguments)

    monkeypatch.setattr(model, "forward", raising)
    bad = [harness.submit(LONG) for _ in range(4)]
    outcomes = harness.run()
    assert {outcomes[i].end.code for i in bad} == {"out_of_memory"}
    assert [outcomes[i].tokens for i in answering] == [expected] * 3
    assert_all_free(harness)


def begin_fails(harness: Harness, monkeypatch) -> None:
    """There is no memory for the next prompt that begins."""
    raise_once(monkeypatch, harness.engine._runner.cache, "begin", torch.OutOfMemoryError("no memory"))


def test_a_prompt_without_room_ends_by_itself(llama, make_harness, monkeypatch):
    harness = make_harness(llama)
    expected = harness.alone(PROMPT).tokens
    answering = harness.submit(PROMPT)
    harness.step()
    begin_fails(harness, monkeypatch)
    large, next_one = harness.submit(LONG), harness.submit(PROMPT)
    outcomes = harness.run()
    assert outcomes[large].end.code == "out_of_memory"
    assert [outcomes[i].tokens for i in (answering, next_one)] == [expected] * 2
    assert_all_free(harness)


def test_a_comparison_without_room_ends_whole(llama, make_harness, monkeypatch):
    harness = make_harness(llama)
    begin_fails(harness, monkeypatch)
    compared = harness.compare(PROMPT, LONG[:20], [(), (vector(),)])
    outcomes = harness.run()
    assert [outcomes[i].end.code for i in compared] == ["out_of_memory"] * 2
    assert_all_free(harness)
    assert isinstance(harness.alone(PROMPT).end, Finished)


def test_what_cannot_be_kept_for_reuse_is_not(llama, make_harness, monkeypatch):
    harness = make_harness(llama, prefix_bytes=1 << 20)

    def no_memory(*_where):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(harness.engine._runner.cache, "block", no_memory)
    first, second = harness.submit(LONG), harness.submit(LONG)
    outcomes = harness.run()
    assert outcomes[first].tokens == outcomes[second].tokens
    assert outcomes[second].end.cached_tokens == 0
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
