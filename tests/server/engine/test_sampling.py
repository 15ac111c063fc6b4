"""Drawing against a slow reference in plain Python floats; every draw here has a fixed seed."""

import math
import random
from collections import Counter

import pytest
import torch

from server.engine import sampling
from server.engine.request import GenerationRequest
from server.engine.row import Row
from server.engine.sampling import SamplingPlan, chosen_logprobs, draw, token_logprobs
from server.types import SamplingParams

VOCAB = 300


def row(seed=0, prompt=(1, 2, 3), generated=(), **settings) -> Row:
    request = GenerationRequest(f"r{seed}", tuple(prompt), SamplingParams(max_tokens=10, seed=seed, **settings))
    made = Row(request, lambda _event: None, None, random.Random(seed))
    made.tokens += generated
    return made


def logits_of(count: int, seed=0, spread=2.0) -> torch.Tensor:
    return spread * torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(seed))


def distribution(logits: list[float], one: Row) -> dict[int, float]:
    """Probability of every token that may be drawn: penalties, bias, temperature, top k, min p, top p, in turn."""
    s, scores = one.request.sampling, list(logits)
    for token in set(one.tokens):
        scores[token] *= 1 / s.repetition_penalty if scores[token] > 0 else s.repetition_penalty
    for token, times in Counter(one.tokens[one.prompt_len :]).items():
        scores[token] -= s.presence_penalty + times * s.frequency_penalty
    for token, bias in s.logit_bias.items():
        scores[token] += bias
    best = max(scores)
    weights = {i: math.exp((x - best) / s.temperature) for i, x in enumerate(scores)}
    order = sorted(weights, key=weights.__getitem__, reverse=True)[: s.top_k or None]
    order = [i for i in order if weights[i] >= s.min_p * weights[order[0]]]
    total, before, kept = sum(weights[i] for i in order), 0.0, []
    for i in order:
        if before < s.top_p * total or not kept:
            kept.append(i)
        before += weights[i]
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


def drawn(logits: torch.Tensor, *rows: Row) -> list[int]:
    return draw(logits, SamplingPlan.build(rows, logits.shape[-1], logits.device))


SETTINGS = [
    {},
    {"temperature": 0.5},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 200},
    {"top_p": 0.5},
    {"top_p": 0.9999},
    {"top_p": 1e-9},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.02, "temperature": 1.3},
    {"repetition_penalty": 1.5, "temperature": 0.7},
    {"presence_penalty": 2.0, "frequency_penalty": 0.5, "top_k": 50},
    {"frequency_penalty": -1.0},
    {"logit_bias": {7: 5.0, 9: -100.0}, "top_p": 0.7},
    {"top_p": 0.999, "temperature": 3.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_frequencies_are_those_of_the_reference(settings):
    """A chi-square statistic over 4,000 draws; its seed is fixed, so it passes always or never."""
    count, logits = 4000, logits_of(1, seed=3)
    rows = [row(seed, generated=(7, 7, 8), **{"temperature": 1.0, **settings}) for seed in range(count)]
    found = Counter(drawn(logits.expand(count, -1), *rows))
    expected = distribution(logits[0].tolist(), rows[0])
    assert set(found) <= set(expected), "a token was drawn that has no probability"
    common = {i for i, p in expected.items() if p * count >= 5}
    cells = [(found[i], expected[i] * count) for i in common]
    rare = 1 - sum(expected[i] for i in common)
    if rare * count >= 5:
        cells.append((count - sum(found[i] for i in common), rare * count))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    freedom = len(cells) - 1
    assert statistic <= freedom + 4 * math.sqrt(2 * freedom) + 1e-9


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_may_be_drawn_does_not_depend_on_how_much_is_looked_at_first(settings, monkeypatch):
    """Sorting everything and looking at the best few draw the same token."""
    logits = logits_of(64, seed=5)
    seen = []
    for enough in (1, 4, 128, VOCAB):
        monkeypatch.setattr(sampling, "_USUALLY_ENOUGH", enough)
        seen.append(drawn(logits, *(row(i, **{"temperature": 1.0, **settings}) for i in range(64))))
    assert seen.count(seen[0]) == len(seen)


def test_a_row_draws_the_same_among_any_others():
    logits = logits_of(len(SETTINGS), seed=8)

    def rows():
        return [row(i, **{"temperature": 1.0, **settings}) for i, settings in enumerate(SETTINGS)]

    together = drawn(logits, *rows())
    assert together == [drawn(logits[i : i + 1], one)[0] for i, one in enumerate(rows())]
    backwards = drawn(logits.flip(0), *reversed(rows()))
    assert together == backwards[::-1]


def test_the_random_numbers_are_the_rows_own():
    logits = logits_of(1).expand(3, -1)
    first, second, other = row(1), row(1), row(2)
    a = [drawn(logits, first, second, other) for _ in range(20)]
    assert [x[0] for x in a] == [x[1] for x in a]
    assert [x[0] for x in a] != [x[2] for x in a]


def test_greedy_takes_the_best_and_the_first_of_equals():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0], [-1.0, -2.0, -1.0, -0.5]])
    assert drawn(logits, *(row(i, prompt=(0,), temperature=0.0) for i in range(3))) == [1, 0, 3]


def test_greedy_and_sampled_rows_share_a_batch():
    logits = logits_of(6, seed=2)
    rows = [row(i, temperature=0.0 if i % 2 else 1.0) for i in range(6)]
    tokens = drawn(logits, *rows)
    assert [tokens[i] for i in (1, 3, 5)] == [int(logits[i].argmax()) for i in (1, 3, 5)]


@pytest.mark.parametrize("temperature", [1e-4, 1e-12, 1e-300])
def test_a_temperature_of_almost_nothing_is_greedy(temperature):
    logits = logits_of(50, seed=4) * 100
    logits[0, :2] = torch.tensor([1e4, 2e4])
    rows = [row(i, temperature=temperature, top_p=0.9 if i % 2 else 1.0) for i in range(50)]
    assert drawn(logits, *rows) == logits.argmax(-1).tolist()


def test_penalties_apply_to_greedy_rows_and_leave_the_logits_alone():
    logits = torch.tensor([[5.0, 4.9, -1.0, 0.0]])
    before = logits.clone()
    assert drawn(logits, row(prompt=(0,), temperature=0.0, repetition_penalty=1.1)) == [1]
    assert drawn(logits, row(prompt=(3,), generated=(0,), temperature=0.0, presence_penalty=0.2)) == [1]
    assert drawn(logits, row(prompt=(0,), temperature=0.0, presence_penalty=2.0)) == [0], "a prompt is not penalised"
    assert drawn(logits, row(prompt=(3,), temperature=0.0, logit_bias={2: 100.0})) == [2]
    assert torch.equal(logits, before)


def test_logprobs_are_the_models_own_whatever_the_settings():
    logits = logits_of(3, seed=6)
    rows = [row(0, temperature=0.2, top_k=2, logprobs=3), row(1), row(2, logprobs=0)]
    found = chosen_logprobs(logits, [5, 6, 7], rows)
    expected = logits.double().log_softmax(-1)
    assert found[1] is None
    assert (found[0].token_id, found[0].logprob) == (5, pytest.approx(float(expected[0, 5]), abs=1e-5))
    assert [i for i, _ in found[0].top] == expected[0].topk(3).indices.tolist()
    assert [p for _, p in found[0].top] == pytest.approx(expected[0].topk(3).values.tolist(), abs=1e-5)
    assert (found[2].token_id, found[2].top) == (7, ())


def test_more_alternatives_than_tokens():
    (scored,) = token_logprobs(torch.tensor([[-1.0, -2.0]]), [1], 20)
    assert scored.top == ((0, -1.0), (1, -2.0))


def test_nobody_sampling_costs_nothing():
    plan = SamplingPlan.build([row(temperature=0.0), row(1, temperature=0.0)], VOCAB, torch.device("cpu"))
    assert (plan.sampled_S, plan.narrowed_N, plan.adjusted) == (None, None, ())


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.2}, {"temperature": 0.3}])
def test_a_row_of_nan_draws_a_token_of_the_vocabulary_and_leaves_others_alone(settings):
    logits = logits_of(3)
    expected = drawn(logits, row(0), row(1), row(2))
    logits[1] = torch.nan
    tokens = drawn(logits, row(0), row(1, **settings), row(2))
    assert 0 <= tokens[1] < VOCAB
    assert [tokens[0], tokens[2]] == [expected[0], expected[2]]


@pytest.mark.parametrize("penalty", [1e-300, 1e-38])
def test_a_tiny_repetition_penalty_repeats(penalty):
    logits = logits_of(1)
    logits[0, [1, 2, 3]] = torch.tensor([5.0, 0.0, 7.0])
    assert drawn(logits, row(repetition_penalty=penalty))[0] in (1, 3)
    assert drawn(logits, row(repetition_penalty=penalty, temperature=0.0))[0] in (1, 3)
