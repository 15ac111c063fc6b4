"""What comes back: where a text ends, log-probabilities, seeds."""

import pytest
import torch

from server.types import NONE, Apply, Positions, SamplingParams
from tests.server.engine.conftest import LONG, PROMPT, Harness, assert_all_free, greedy, tiny_model
from tests.server.engine.interventions import vector

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
