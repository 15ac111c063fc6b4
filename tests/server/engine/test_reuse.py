"""Prompt prefixes are reused, and no request ever gets keys that other interventions shaped."""

import itertools

import pytest

from server.engine.prefix import BLOCK
from server.engine.request import GenerationRequest, InterventionUpdate
from server.types import NONE, Apply, Failed, Positions
from tests.server.engine.conftest import Harness, assert_all_free, greedy, tiny_model
from tests.server.engine.interventions import switch, vector

PROMPT = list(range(1, 120))
BUDGET = 1 << 24
SETTINGS = {
    "plain": (),
    "switch": (switch(layers=(1,)),),
    "half switch": (switch(layers=(1,), strength=0.5),),
    "two sites": (switch(layers=(0, 2)),),
    "add": (vector("add", (1,), 3.0),),
    "add and ablate": (vector("add", (0,), 3.0, seed=3), vector("ablate", (2,), seed=4)),
    "clamp": (vector("clamp", (1,), seed=4, minimum=-0.1, maximum=0.1),),
    "last": (vector("add", (1,), 3.0, apply=Apply(prompt=Positions("last"))),),
    "window": (vector("add", (1,), 3.0, apply=Apply(prompt=Positions("window", 20, 50))),),
    "generation": (vector("add", (2,), 3.0, apply=Apply(prompt=NONE)),),
}

pytestmark = pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2", "qwen2-sliding"])
def expected(request):
    """A model, and what it says under each setting without any reuse."""
    loaded = tiny_model(request.param)
    harness = Harness(loaded, prefill_tokens=48)
    outcomes = {name: harness.alone(PROMPT, greedy(12), used) for name, used in SETTINGS.items()}
    harness.engine.stop()
    return loaded, outcomes


def receipts(outcome):
    return [(r.name, r.prompt_tokens, r.generated_tokens) for r in outcome.end.receipts]


def counts(harness):
    return harness.engine._runner.reuse.counts


def test_no_setting_contaminates_another_in_sequence(expected, make_harness):
    loaded, wanted = expected
    for first, second in itertools.permutations(SETTINGS, 2):
        harness = make_harness(loaded, prefill_tokens=48, prefix_bytes=BUDGET)
        for name in (first, second, first, second):
            outcome = harness.alone(PROMPT, greedy(12), SETTINGS[name])
            assert outcome.tokens == wanted[name].tokens, (first, second, name)
            assert receipts(outcome) == receipts(wanted[name]), (first, second, name)
        assert counts(harness).reused >= 2 * (len(PROMPT) - BLOCK)
        harness.engine.stop()


def test_no_setting_contaminates_another_at_the_same_time(expected, make_harness):
    loaded, wanted = expected
    harness = make_harness(loaded, prefill_tokens=48, prefix_bytes=BUDGET)
    ids = [(name, harness.submit(PROMPT, greedy(12), used)) for name, used in [*SETTINGS.items()] * 3]
    outcomes = harness.run()
    for name, id_ in ids:
        assert outcomes[id_].tokens == wanted[name].tokens, name
        assert receipts(outcomes[id_]) == receipts(wanted[name]), name
    assert counts(harness).reused > 0


def test_equal_prompts_at_once_are_computed_once(llama, make_harness):
    harness = make_harness(llama, prefix_bytes=BUDGET)
    ids = [harness.submit(PROMPT, greedy(4)) for _ in range(8)]
    outcomes = harness.run()
    assert len({tuple(outcomes[i].tokens) for i in ids}) == 1
    assert counts(harness).reused == 7 * ((len(PROMPT) - 1) // BLOCK * BLOCK)


def test_a_switch_resumes_above_its_site(llama, make_harness):
    """Once a request has named the site, outputs there are kept: other strengths compute the layers above only."""
    harness = make_harness(llama, prefix_bytes=BUDGET)
    blocks = (len(PROMPT) - 1) // BLOCK * BLOCK
    for strength, resumed in ((1.0, 0), (0.5, blocks), (0.25, blocks)):
        before = counts(harness).resumed
        used = (switch(layers=(1,), strength=strength),)
        ran = Computed(llama)
        outcome = harness.alone(PROMPT, greedy(6), used)
        assert counts(harness).resumed - before == resumed
        assert ran.restore()[0] == len(PROMPT) - resumed + 5, "tokens that the lowest block computed"
        fresh = make_harness(llama)
        assert outcome.tokens == fresh.alone(PROMPT, greedy(6), used).tokens
        fresh.engine.stop()


def test_an_intervention_on_the_answer_reuses_the_whole_prompt(llama, make_harness):
    harness = make_harness(llama, prefix_bytes=BUDGET)
    harness.alone(PROMPT, greedy(2))
    steered = (vector("add", (0,), 3.0, apply=Apply(prompt=NONE)),)
    harness.alone(PROMPT, greedy(6), steered)
    assert counts(harness).reused == (len(PROMPT) - 1) // BLOCK * BLOCK


def test_a_conversation_goes_on_from_its_own_answer(llama, make_harness):
    harness = make_harness(llama, prefix_bytes=BUDGET)
    for used in ((), (switch(layers=(1,)),)):
        before = counts(harness).reused
        answer = harness.alone(PROMPT[:40], greedy(60), used).tokens
        turn = [*PROMPT[:40], *answer, 7, 8, 9]
        followed = harness.alone(turn, greedy(6), used)
        assert counts(harness).reused - before >= 96
        fresh = make_harness(llama)
        assert followed.tokens == fresh.alone(turn, greedy(6), used).tokens
        fresh.engine.stop()


def test_owners_share_nothing(llama, make_harness):
    harness = make_harness(llama, prefix_bytes=BUDGET)
    for i, owner in enumerate(("alice", "bob", None, "alice")):
        harness.engine.submit(GenerationRequest(f"o{i}", tuple(PROMPT), greedy(2), (), owner), lambda _event: None)
        before = counts(harness).reused
        harness.run()
        assert (counts(harness).reused > before) == (i == 3)


def test_a_spoilt_prompt_is_never_kept(llama, make_harness):
    harness = make_harness(llama, prefix_bytes=BUDGET)
    spoilt = (vector("add", (1,), strength=1e38, size=1e30),)
    for _ in range(2):
        assert isinstance(harness.alone(PROMPT, greedy(4), spoilt).end, Failed)
    assert harness.engine._runner.reuse.prefixes.nbytes == 0
    waiting = [harness.submit(PROMPT, greedy(4), spoilt), harness.submit(PROMPT, greedy(4), spoilt)]
    outcomes = harness.run()
    assert all(isinstance(outcomes[i].end, Failed) for i in waiting), "who waited for it computes it alone"
    assert_all_free(harness)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_cancelling_the_row_that_others_wait_for_lets_them_go_on(llama, make_harness, steps):
    harness = make_harness(llama, prefill_tokens=48, prefix_bytes=BUDGET)
    first = harness.submit(PROMPT, greedy(4))
    second = harness.submit(PROMPT, greedy(4))
    for _ in range(steps):
        harness.step()
    harness.engine.cancel(first)
    tokens = harness.run()[second].tokens
    assert tokens == harness.generate(PROMPT, 4)
    assert_all_free(harness)


def test_a_change_while_the_prompt_is_read_is_not_kept_as_what_it_was(llama, make_harness):
    harness = make_harness(llama, prefill_tokens=32, prefix_bytes=BUDGET)
    changed = harness.submit(PROMPT, greedy(4), (switch(layers=(1,)),))
    harness.step()
    harness.engine.update(changed, InterventionUpdate(switch=()))
    harness.run()
    fresh = make_harness(llama)
    for used in ((switch(layers=(1,)),), ()):
        assert harness.alone(PROMPT, greedy(6), used).tokens == fresh.alone(PROMPT, greedy(6), used).tokens


def test_memory_stays_within_the_budget_and_what_is_shared_most_stays_longest(llama, make_harness):
    harness = make_harness(llama, prefix_bytes=1 << 16)
    prefixes = harness.engine._runner.reuse.prefixes
    system = list(range(100, 148))
    for i in range(40):
        harness.alone([*system, *(i + 1 for _ in range(30))], greedy(2))
        assert prefixes.nbytes <= prefixes.budget_bytes
    before = counts(harness).reused
    harness.alone([*system, 5, 4, 3], greedy(2))
    assert counts(harness).reused - before == len(system)
    assert prefixes.nbytes == sum(block.nbytes for block in prefixes._blocks.values())


def test_off_keeps_nothing(llama, make_harness):
    harness = make_harness(llama)
    for _ in range(2):
        harness.alone(PROMPT, greedy(2))
    assert harness.engine._runner.reuse.prefixes.nbytes == 0
    assert counts(harness).reused == 0


def test_prompt_logprobs_need_every_token(llama, make_harness):
    harness = make_harness(llama, prefix_bytes=BUDGET)
    first, second = (harness.alone(PROMPT, greedy(2, prompt_logprobs=1)) for _ in range(2))
    assert len(first.prompt.logprobs) == len(second.prompt.logprobs) == len(PROMPT) - 1


class Computed:
    """Counts the tokens that each block computes."""

    def __init__(self, loaded) -> None:
        self.loaded, self.tokens = loaded, [0] * loaded.stack.layers
        self.handles = [
            block.self_attn.register_forward_hook(self._hook(layer), with_kwargs=True)
            for layer, block in enumerate(loaded.stack.blocks)
        ]

    def _hook(self, layer):
        def hook(_module, _args, kwargs, _out):
            self.tokens[layer] += kwargs["hidden_states"].shape[1]

        return hook

    def restore(self) -> list[int]:
        for handle in self.handles:
            handle.remove()
        return self.tokens
