"""Rows that read one text side by side: what they find, whom they disturb, and that they end together."""

import math
import random

import pytest
import torch

from server.engine import runner
from server.engine.request import GenerationRequest, InterventionUpdate
from server.errors import Conflict, ContextLengthExceeded, InvalidRequest, NotFound, Unavailable
from server.types import NONE, Apply, Failed, Finished, Positions, SamplingParams
from tests.server.engine.conftest import Harness, assert_all_free, greedy, tiny_model
from tests.server.engine.interventions import switch, vector

PROMPT = list(range(1, 60))
BUDGET = 1 << 24
ANSWER = Apply(prompt=NONE)
WINDOW = Apply(prompt=Positions("window", 10, 40), generation=Positions("window", 2, 6))


def behind(position: int) -> bool:
    return position >= len(PROMPT)


SETTINGS = {
    "plain": ((), None),
    "zero": ((switch(layers=(1,), strength=0.0),), None),
    "switch": ((switch(layers=(1,)),), lambda _: True),
    "half switch on the answer": ((switch(layers=(1,), strength=0.5, apply=ANSWER),), behind),
    "add at two sites": ((vector("add", (0, 2), 3.0),), lambda _: True),
    "add in windows": (
        (vector("add", (1,), 4.0, seed=5, apply=WINDOW),),
        lambda p: 10 <= p < 40 or len(PROMPT) + 2 <= p < len(PROMPT) + 6,
    ),
}
USED = [used for used, _ in SETTINGS.values()]


def plain_logits(loaded, ids, used, selects) -> torch.Tensor:
    """The stock model, with hooks that say what the interventions mean."""

    def hook(resolved, effect):
        def changed(_module, _args, output):
            h = (output[0] if isinstance(output, tuple) else output).clone()
            at = [p for p in range(len(ids)) if selects(p)]
            s = resolved.strength
            new = (1 - s) * h[0, at] + s * effect(h[0, at]) if resolved.operation == "switch" else h[0, at] + s * effect
            h[0, at] = new
            return (h, *output[1:]) if isinstance(output, tuple) else h

        return changed

    hooks = [
        loaded.stack.blocks[site.layer].register_forward_hook(hook(resolved, effect))
        for resolved in used
        if resolved.strength
        for site, effect in resolved.effects.items()
    ]
    try:
        with torch.no_grad():
            return loaded.model(torch.tensor([ids])).logits[0].float()
    finally:
        for one in hooks:
            one.remove()


def expected_divergences(loaded, text) -> list[torch.Tensor]:
    found = [plain_logits(loaded, PROMPT + text, used, selects) for used, selects in SETTINGS.values()]
    logprobs = [logits[len(PROMPT) - 1 : -1].log_softmax(-1).double() for logits in found]
    return [(logprobs[0].exp() * (logprobs[0] - other)).sum(-1) for other in logprobs]


@pytest.mark.parametrize("reuse", ["off", "cold", "warm"])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2", "qwen2-sliding"])
def test_divergences_are_those_of_the_stock_model_with_hooks(make_harness, kind, reuse):
    loaded = tiny_model(kind)
    text = random.Random(1).choices(range(1, 256), k=90)
    expected = expected_divergences(loaded, text)
    harness = make_harness(loaded, prefill_tokens=64, prefix_bytes=0 if reuse == "off" else BUDGET)
    if reuse == "warm":
        for used in USED[:4]:
            harness.submit(PROMPT, greedy(4), used)
        harness.run()
    first, *ids = harness.compare(PROMPT, text, USED)
    outcomes = harness.run()
    assert outcomes[first].divergences == []
    for id_, kl, name in zip(ids, expected[1:], list(SETTINGS)[1:], strict=True):
        assert torch.tensor(outcomes[id_].divergences, dtype=torch.float64).allclose(kl, rtol=2e-3, atol=2e-5), name
        assert isinstance(outcomes[id_].end, Finished)
    assert max(outcomes[ids[0]].divergences) < 1e-6, "a strength of 0 is no intervention"
    assert min(max(outcomes[id_].divergences) for id_ in ids[1:]) > 1e-3
    assert (harness.engine._runner.reuse.counts.reused > 0) == (reuse == "warm")
    assert_all_free(harness)


def test_receipts_count_the_text_as_generated(harness):
    (_, id_) = harness.compare(PROMPT, [5] * 20, [(), (switch(layers=(1,)),)])
    (receipt,) = harness.run()[id_].end.receipts
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (len(PROMPT), 19), "the last token is never read"
    assert receipt.mean_relative_change > 0


@pytest.mark.parametrize(
    ("prompt", "text"), [([7], [1]), ([7], [1, 2, 3]), (PROMPT, [1]), (list(range(1, 17)), [4] * 17)]
)
def test_short_prompts_and_texts(harness, prompt, text):
    (_, id_) = harness.compare(prompt, text, [(), (vector("add", (1,), 4.0),)])
    assert len(harness.run()[id_].divergences) == len(text)
    assert_all_free(harness)


def test_neighbours_and_comparisons_do_not_notice_each_other(llama, make_harness):
    text = random.Random(2).choices(range(1, 256), k=50)
    alone = make_harness(llama, prefill_tokens=32)
    ids = alone.compare(PROMPT, text, USED)
    wanted = [alone.run()[id_].divergences for id_ in ids]
    plain, switched = alone.alone(PROMPT, greedy(40)).tokens, alone.alone(PROMPT, greedy(40), USED[2]).tokens
    for prefix_bytes in (0, BUDGET):
        harness = make_harness(llama, prefill_tokens=32, prefix_bytes=prefix_bytes)
        rows = [harness.submit(PROMPT, greedy(40), used) for used in ((), USED[2]) * 3]
        poison = harness.submit(PROMPT, greedy(40), (vector("add", (0,), 100.0, size=1e37),) * 8)
        for _ in range(2):
            harness.step()
        groups = [harness.compare(PROMPT, text, USED) for _ in range(3)]
        outcomes = harness.run()
        assert [outcomes[id_].tokens for id_ in rows] == [plain, switched] * 3
        assert outcomes[poison].end.code == "non_finite"
        for group in groups:
            for id_, kl in zip(group, wanted, strict=True):
                assert outcomes[id_].divergences == pytest.approx(kl, rel=2e-3, abs=2e-5)
        assert_all_free(harness)


def test_rows_that_write_go_on_while_a_text_is_read(llama, make_harness):
    harness = make_harness(llama, prefill_tokens=8)
    row = harness.submit(PROMPT[:4], greedy(60))
    harness.step()
    group = harness.compare(PROMPT, [3] * 100, USED)
    for _ in range(40):
        harness.step()
    assert len(harness.outcomes[row].tokens) >= 20
    assert harness.outcomes[group[0]].end is None


def test_nobody_waits_for_the_prompt_of_a_comparison(llama, make_harness):
    harness = make_harness(llama, prefill_tokens=16, prefix_bytes=BUDGET)
    group = harness.compare(PROMPT, [3] * 150, USED)
    harness.step()
    row = harness.submit(PROMPT, greedy(4))
    while harness.outcomes[row].end is None:
        assert harness.step()
    assert harness.outcomes[group[0]].end is None
    harness.run()
    assert_all_free(harness)


def test_all_may_resume_above_a_site(llama, make_harness):
    """Each shares the lowest layers of what was read before, and none all of them."""
    used = [(vector("add", (1,), strength, seed=5, apply=WINDOW),) for strength in (1.0, 2.0, 3.0)]
    plain = make_harness(llama)
    wanted = [plain.outcomes[id_] for id_ in plain.compare(PROMPT, [3, 1, 4] * 20, used)]
    plain.run()
    harness = make_harness(llama, prefill_tokens=30, prefix_bytes=BUDGET)
    harness.alone(PROMPT, greedy(2), (vector("add", (1,), 4.0, seed=6),))
    ids = harness.compare(PROMPT, [3, 1, 4] * 20, used)
    outcomes = harness.run()
    assert harness.engine._runner.reuse.counts.resumed == 3 * 48
    for id_, one in zip(ids, wanted, strict=True):
        assert outcomes[id_].divergences == pytest.approx(one.divergences, rel=2e-3, abs=2e-5)
        assert [r.prompt_tokens for r in outcomes[id_].end.receipts] == [r.prompt_tokens for r in one.end.receipts]


def test_a_batch_never_keeps_more_logits_than_its_share(llama, make_harness, monkeypatch):
    harness = make_harness(llama, prefill_tokens=4096)
    sizes = []
    forward = harness.engine._runner.forward
    monkeypatch.setattr(
        harness.engine._runner, "forward", lambda batch: sizes.append(sum(batch.counts)) or forward(batch)
    )
    harness.compare(PROMPT, [3] * 150, [()] * 8)
    harness.run()
    prompt, *scored = sizes
    assert prompt == 8 * (len(PROMPT) - 1)
    assert sum(scored) == 8 * 150
    assert max(scored) == 256


# -- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(9))
@pytest.mark.parametrize("prefix_bytes", [0, BUDGET])
def test_cancelling_one_row_ends_all_and_gives_everything_back(llama, make_harness, steps, prefix_bytes):
    harness = make_harness(llama, prefill_tokens=24, prefix_bytes=prefix_bytes)
    first, *others = harness.compare(PROMPT, [3] * 40, USED[:4])
    waiting = harness.compare(PROMPT, [3] * 40, USED[:2])
    for _ in range(steps):
        harness.step()
    harness.engine.cancel(first)
    outcomes = harness.run()
    assert outcomes[first].end is None
    assert {outcomes[id_].end.code for id_ in others} == {"engine_failed"}
    assert all(isinstance(outcomes[id_].end, Finished) for id_ in waiting)
    assert_all_free(harness)


@pytest.mark.parametrize("steps", [0, 3])
def test_cancelling_all_rows_is_silent(harness, steps):
    ids = harness.compare(PROMPT, [3] * 150, USED)
    for _ in range(steps):
        harness.step()
    for id_ in ids:
        harness.engine.cancel(id_)
    assert [harness.run()[id_].end for id_ in ids] == [None] * len(ids)
    assert_all_free(harness)


def test_a_setting_that_is_not_finite_fails_all(harness):
    ids = harness.compare(PROMPT, [3] * 20, [(), (vector("add", (0,), 100.0, size=1e37),) * 8, USED[2]])
    assert {harness.run()[id_].end.code for id_ in ids} == {"non_finite"}
    assert_all_free(harness)


@pytest.mark.parametrize("size", [1e20, 1e30])
def test_an_overflow_that_a_norm_hides_fails_all(harness, size):
    """What it says is finite all the same: only the meters know."""
    ids = harness.compare(PROMPT, [3] * 20, [(), (vector("add", (1,), size=size, apply=ANSWER),)])
    ends = [harness.run()[id_].end for id_ in ids]
    assert {end.code for end in ends} == {"non_finite"}


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_a_divergence_that_is_not_finite_fails_all(harness, monkeypatch, spoilt):
    """As where the model itself overflows, without any intervention."""
    monkeypatch.setattr(runner, "divergences", lambda logits: [[0.0, spoilt, 0.0] for _ in logits[1:]])
    ids = harness.compare(PROMPT, [3] * 3, [(), ()])
    assert {harness.run()[id_].end.code for id_ in ids} == {"non_finite"}
    assert_all_free(harness)


def test_an_intervention_that_raises_fails_all(harness):
    broken = switch(layers=(1,), seed=9)
    broken.effects[broken.sites[0]].forward = lambda _h: 1 / 0
    neighbour = harness.submit(PROMPT, greedy(30))
    ids = harness.compare(PROMPT, [3] * 20, [(), (broken,), USED[2]])
    outcomes = harness.run()
    assert {outcomes[id_].end.code for id_ in ids} == {"intervention_failed"}
    assert isinstance(outcomes[neighbour].end, Finished)
    assert_all_free(harness)


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("x"), "engine_failed"), (torch.OutOfMemoryError("x"), "out_of_memory")]
)
@pytest.mark.parametrize("at", [1, 3])
def test_a_forward_that_raises_fails_all(llama, make_harness, monkeypatch, error, code, at):
    harness = make_harness(llama, prefill_tokens=24)
    ids = harness.compare(PROMPT, [3] * 40, USED[:4])
    for _ in range(at):
        harness.step()

    def raising(_batch):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(harness.engine._runner, "forward", raising)
        harness.step()
    assert {harness.outcomes[id_].end.code for id_ in ids} == {code}
    assert_all_free(harness)
    again = harness.compare(PROMPT, [3] * 4, USED)
    assert all(isinstance(harness.run()[id_].end, Finished) for id_ in again), "also where fewer rows decode at once"


def test_a_receiver_that_raises_ends_all(harness):
    ends: list = []

    def raising(_event):
        raise RuntimeError("closed")

    requests = [GenerationRequest(f"x{i}", (1, 2), SamplingParams(max_tokens=0), scored_ids=(3,)) for i in range(3)]
    harness.engine.submit_together(requests, [raising, ends.append, ends.append])
    harness.run()
    assert len([end for end in ends if isinstance(end, Failed)]) == 2
    assert_all_free(harness)


def test_those_that_still_run_at_the_end_are_told(llama, make_harness):
    harness = make_harness(llama)
    ids = harness.compare(PROMPT, [3] * 40, USED)
    harness.step()
    harness.engine.start()
    harness.engine.stop()
    assert {type(harness.outcomes[id_].end) for id_ in ids} <= {Failed, Finished}
    with pytest.raises(Unavailable):
        harness.compare(PROMPT, [3], USED)


# -- admission ------------------------------------------------------------------------------------------------------


def test_what_can_never_run_is_refused(llama, make_harness):
    harness = make_harness(llama, kv_bytes=1 << 18)
    row = harness.engine._runner.cache.row_bytes(len(PROMPT) + 40)
    most = (1 << 18) // row
    assert most >= 2
    harness.compare(PROMPT, [3] * 40, [()] * most)
    with pytest.raises(ContextLengthExceeded) as refused:
        harness.compare(PROMPT, [3] * 40, [()] * (most + 1))
    assert refused.value.param == "settings"
    with pytest.raises(InvalidRequest):
        harness.compare(PROMPT, [256], [()])
    with pytest.raises(ContextLengthExceeded):
        harness.compare(PROMPT, [1] * 250, [()])
    harness.run()
    assert_all_free(harness)


def test_comparisons_take_turns_for_memory_and_never_block_each_other(llama, make_harness):
    """Memory for one and a half of them: each is admitted at once or not at all, and rows in between finish too."""
    harness = make_harness(llama, kv_bytes=6 * Harness(llama).engine._runner.cache.row_bytes(100), prefix_bytes=BUDGET)
    ids = []
    for _ in range(4):
        ids += harness.compare(PROMPT, [3] * 40, USED[:4])
        ids.append(harness.submit(PROMPT, greedy(20)))
    outcomes = harness.run()
    assert all(isinstance(outcomes[id_].end, Finished) for id_ in ids)
    assert_all_free(harness)


def test_a_scored_row_cannot_be_changed_and_its_id_not_be_used_twice(harness):
    ids = harness.compare(PROMPT, [3] * 40, USED[:2])
    with pytest.raises(NotFound):
        harness.engine.update(ids[1], InterventionUpdate(steering=()))
    with pytest.raises(Conflict):
        harness.submit(PROMPT, id=ids[1])
    assert {info.state for info in harness.engine.generations()} == {"waiting"}
    harness.step()
    assert {info.state for info in harness.engine.generations()} == {"score"}
    harness.run()
