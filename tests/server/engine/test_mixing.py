"""Rows that decode, in several length classes, and prompts that are read in chunks share a forward and nothing else."""

import random

import pytest
import torch

from mappers.sites import Site
from server.errors import Conflict
from server.types import NONE, Apply, Finished, Positions
from tests.server.engine.conftest import Harness, assert_all_free, greedy, record_logits, tiny_model
from tests.server.engine.interventions import switch, vector

KINDS = ["llama", "gemma2", "mistral-sliding"]
LENGTHS = [5, 60, 130, 70, 1, 150, 33, 62]
SETTINGS = [(), (switch(),), (), (vector(strength=2.0),), (vector("ablate", (0, 2)), switch(layers=(1,))), (), (), ()]
NAN = vector("add", (1,), seed=1, apply=Apply(prompt=Positions("window", 30, None)))
NAN.effects[Site(1)][3] = float("nan")


def prompts() -> list[list[int]]:
    rng = random.Random(4)
    return [[rng.randrange(1, 256) for _ in range(length)] for length in LENGTHS]


def compositions(harness: Harness) -> set[tuple[int, int]]:
    """How many length classes and how many chunks a forward held."""
    seen = set()
    next_batch = harness.engine._scheduler.next_batch

    def noting():
        batch = next_batch()
        if batch is not None:
            chunks = sum(row.state == "prefill" for row in batch.rows)
            seen.add((len(harness.engine._runner.cache.pools), chunks))
        return batch

    harness.engine._scheduler.next_batch = noting
    return seen


def come_one_by_one(harness: Harness, texts, settings, count: int, every: int = 3) -> list[str]:
    ids = []
    for text, used in zip(texts, settings, strict=True):
        ids.append(harness.submit(text, greedy(count), used))
        for _ in range(every):
            harness.step()
    harness.run()
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_all_classes_beside_chunks_equal_their_solo_runs(kind, make_harness):
    harness = make_harness(tiny_model(kind), prefill_tokens=24)
    logits = record_logits(harness)
    alone = [harness.alone(text, greedy(50), used) for text, used in zip(prompts(), SETTINGS, strict=True)]
    alone_logits = list(logits.values())
    seen = compositions(harness)
    ids = come_one_by_one(harness, prompts(), SETTINGS, 50)
    assert {classes for classes, _ in seen} >= {1, 2, 3}
    assert max(chunks for classes, chunks in seen if classes == 3) >= 2
    for id_, solo, solo_logits in zip(ids, alone, alone_logits, strict=True):
        assert harness.outcomes[id_].tokens == solo.tokens
        mixed, single = torch.stack(logits[id_]), torch.stack(solo_logits)
        assert float((mixed - single).abs().max()) <= 1e-5 * max(float(single.abs().max()), 1.0)
    assert len({tuple(solo.tokens) for solo in alone}) == len(LENGTHS)
    assert_all_free(harness)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_in_a_chunk_leaves_rows_that_decode_bit_identical(kind, make_harness):
    """A prompt of 150 tokens is NaN from its 31st on; rows of two classes decode beside it, in wrapped rings."""
    runs = []
    for used in ((), (NAN,)):
        harness = make_harness(tiny_model(kind), prefill_tokens=16)
        logits = record_logits(harness)
        watched = [harness.submit(text, greedy(40)) for text in prompts()[:2]]
        for _ in range(12):
            harness.step()
        before = len(logits[watched[0]])
        spoilt = harness.submit(prompts()[5], greedy(), used)
        while not harness.outcomes[spoilt].tokens and harness.outcomes[spoilt].end is None:
            harness.step()
        steps = len(logits[watched[0]]) - before
        assert steps >= 9, "the whole prompt was read beside them"
        runs.append([torch.stack(logits[id_]) for id_ in watched])
    assert harness.outcomes[spoilt].end.code == "non_finite"
    for clean, beside_nan in zip(*runs, strict=True):
        assert torch.equal(clean, beside_nan)


@pytest.mark.parametrize("kind", KINDS)
def test_slots_of_every_class_are_clean_after_nan(kind, make_harness):
    """Rows that end as NaN after 20 tokens, in three classes; those that follow take their slots."""
    late = vector("add", strength=1e38, size=1e30, apply=Apply(prompt=NONE, generation=Positions("window", 20, None)))
    harness = make_harness(tiny_model(kind), max_batch=4)
    texts = [text for text in prompts() if len(text) > 30][:4]
    expected = [harness.alone(text, greedy(30)).tokens for text in texts]
    bad = [harness.submit(text, greedy(30), (late,)) for text in texts]
    good = [harness.submit(text, greedy(30)) for text in texts]
    outcomes = harness.run()
    assert [(outcomes[i].end.code, outcomes[i].tokens) for i in bad] == [("non_finite", e[:21]) for e in expected]
    assert [outcomes[i].tokens for i in good] == expected
    assert_all_free(harness)


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_cancelling_while_a_prompt_is_read_reaches_nobody(llama, make_harness, chunks):
    harness = make_harness(llama, prefill_tokens=16)
    expected = [harness.alone(text, greedy(30)).tokens for text in prompts()[:4]]
    ids = [harness.submit(text, greedy(30)) for text in prompts()[:2]]
    for _ in range(8):
        harness.step()
    gone = harness.submit(prompts()[5], greedy(30), (switch(),))
    for _ in range(chunks):
        harness.step()
    assert {info.id: info.state for info in harness.engine.generations()}[gone] == "prefill"
    harness.engine.cancel(gone)
    ids += [harness.submit(text, greedy(30)) for text in prompts()[2:4]]
    outcomes = harness.run()
    assert [outcomes[i].tokens for i in ids] == expected
    assert outcomes[gone].tokens == []
    assert_all_free(harness)


def raising(*_arguments):
    raise RuntimeError("no such function")


def test_an_operation_that_raises_in_a_chunk_ends_its_own_row_only(llama, make_harness):
    """It is planned for the last tokens of the prompt, when other rows have long been decoding."""
    broken = switch(apply=Apply(prompt=Positions("window", 100, None)))
    broken.effects[Site(1)].forward = raising
    harness = make_harness(llama, prefill_tokens=16)
    settings = [(), (switch(),), (vector(),)]
    expected = [harness.alone(text, greedy(30), used).tokens for text, used in zip(prompts(), settings, strict=False)]
    ids = [harness.submit(text, greedy(30), used) for text, used in zip(prompts(), settings, strict=False)]
    bad = harness.submit(prompts()[5], greedy(30), (broken,))
    outcomes = harness.run()
    assert (outcomes[bad].end.code, outcomes[bad].tokens) == ("intervention_failed", [])
    assert [outcomes[i].tokens for i in ids] == expected
    assert_all_free(harness)


def test_a_second_request_of_a_running_id_does_not_disturb_the_first(llama, make_harness):
    harness = make_harness(llama, prefill_tokens=16)
    expected = harness.alone(prompts()[5], greedy(12), (switch(),)).tokens
    harness.submit(prompts()[5], greedy(12), (switch(),), id="same")
    outcome = harness.outcomes["same"]
    for _ in range(15):
        harness.step()
        with pytest.raises(Conflict):
            harness.submit(prompts()[0], greedy(12), id="same")
    harness.run()
    assert outcome.tokens == expected
    assert_all_free(harness)


def test_scores_of_a_prompt_do_not_depend_on_its_chunks_or_neighbours(llama, make_harness):
    sampling = greedy(4, prompt_logprobs=2)
    alone = make_harness(llama, prefill_tokens=256).alone(prompts()[5], sampling)
    harness = make_harness(llama, prefill_tokens=16)
    for text in prompts()[:4]:
        harness.submit(text, greedy(60))
    for _ in range(6):
        harness.step()
    scored = harness.submit(prompts()[5], sampling)
    harness.run()
    mixed = harness.outcomes[scored]
    assert isinstance(mixed.end, Finished)
    assert mixed.tokens == alone.tokens
    ours, theirs = mixed.prompt.logprobs, alone.prompt.logprobs
    assert len(ours) == len(theirs) == 149
    assert [one.token_id for one in ours] == [one.token_id for one in theirs] == prompts()[5][1:]
    assert max(abs(a.logprob - b.logprob) for a, b in zip(ours, theirs, strict=True)) < 1e-4
