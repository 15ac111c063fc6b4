"""Gated interventions through the engine, against stock forwards of the whole text and a loop over its tokens."""

import itertools

import pytest
import torch

from mappers.hooks import block_outputs
from mappers.sites import Site
from server.engine.prefix import BLOCK
from server.engine.request import InterventionUpdate
from server.types import NONE, Apply, Failed, Finished, Positions
from tests.server.engine.conftest import assert_all_free, greedy, record_logits, tiny_model
from tests.server.engine.interventions import gate, gated, switch, vector
from tests.server.interventions.test_gates import states

pytestmark = pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])

TEXT = list(range(1, 60))
TOKENS = 8


def scores_of(loaded, ids, by):
    """What the probe of a gate says of a text that nothing is done to."""
    seen = {}
    with torch.no_grad(), block_outputs(loaded.stack, {by.mark.site: lambda h: seen.setdefault("h", h.clone())}):
        loaded.model(torch.tensor([ids]))
    return by.probe.scores(seen["h"][0]).tolist()


def fitting(loaded, layer, share, seed=0, **how):
    """A gate that opens at about ``share`` of the tokens of :data:`TEXT`."""
    scores = sorted(scores_of(loaded, TEXT, gate(layer, seed)))

    def between(place):
        """In the widest gap near a place, so that rounding decides nothing."""
        near = range(max(place - 2, 0), min(place + 3, len(scores) - 1))
        low = max(near, key=lambda i: scores[i + 1] - scores[i])
        return (scores[low] + scores[low + 1]) / 2

    cut, low = between(int((1 - share) * len(scores))), between(len(scores) // 4)
    return gate(layer, seed, on=max(cut, low), off=low, **how)


def oracle(loaded, prompt, settings, count, change_at=None, later=()):
    """Greedy tokens by stock forwards of everything so far, without keys and values kept; and the gates' hits.

    From generated token ``change_at`` on ``later`` replaces ``settings``, its gates closed when it comes.
    """
    tokens, hits = list(prompt), []
    for _ in range(count):
        open_at, hits = {}, []
        phases = [(0, settings)] if change_at is None else [(0, settings), (len(prompt) + change_at - 1, later)]

        def act(site, h_BTD, phases=phases, open_at=open_at, hits=hits):
            read_TD = h_BTD[0]
            h_TD = read_TD.clone()
            for number, (first, used_then) in enumerate(phases):
                stop = phases[number + 1][0] if number + 1 < len(phases) else len(h_TD)
                for place, used in enumerate(used_then):
                    key = (number, place)
                    if used.gate is not None and used.gate.mark.site == site:
                        mark, scores = used.gate.mark, used.gate.probe.scores(read_TD[first:stop])
                        found = states(scores.tolist(), mark.on, mark.off, mark.hold)
                        open_at[key] = torch.tensor([left > 0 for left in found], dtype=torch.bool)
                        hits.append(int(open_at[key].sum()))
                    if site in used.sites:
                        on = open_at.get(key, torch.ones(max(stop - first, 0), dtype=torch.bool))
                        part = h_TD[first:stop]
                        if used.operation == "switch":
                            changed = torch.lerp(part, used.effects[site](part), used.strength)
                        else:
                            changed = part + used.strength * used.effects[site]
                        h_TD[first:stop] = torch.where(on[:, None], changed, part)
            return h_TD[None]

        callbacks = {site: (lambda h, site=site: act(site, h)) for site in loaded.stack.sites}
        with torch.no_grad(), block_outputs(loaded.stack, callbacks):
            logits = loaded.model(torch.tensor([tokens])).logits[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :], hits


def cases(loaded):
    return {
        "same site": (gated(vector("add", (1,), 8.0), fitting(loaded, 1, 0.4)),),
        "sites above": (gated(switch(layers=(1, 2)), fitting(loaded, 0, 0.3)),),
        "held": (gated(vector("add", (1,), 8.0), fitting(loaded, 0, 0.1, hold=3)),),
        "for good": (gated(vector("add", (2,), 8.0), fitting(loaded, 1, 0.05, hold=10**6)),),
        "two gates": (
            gated(switch(layers=(1,)), fitting(loaded, 1, 0.3, seed=1)),
            gated(vector("add", (1,), 8.0), fitting(loaded, 1, 0.3, seed=2)),
        ),
        "behind another": (vector("add", (0,), 2.0), gated(vector("add", (2,), 8.0), fitting(loaded, 1, 0.4))),
        "read after a change below": (
            gated(vector("add", (0,), 8.0), fitting(loaded, 0, 0.4)),
            gated(vector("add", (1,), 8.0), fitting(loaded, 1, 0.4, seed=3)),
        ),
    }


@pytest.fixture(scope="module", params=["llama", "qwen2-sliding"])
def expected(request):
    """A model, settings, and what stock forwards give for them."""
    loaded = tiny_model(request.param)
    settings = cases(loaded)
    return loaded, settings, {name: oracle(loaded, TEXT, used, TOKENS) for name, used in settings.items()}


def hits(outcome):
    return [receipt.gate_hits for receipt in outcome.end.receipts if receipt.gate_hits is not None]


@pytest.mark.parametrize("chunk", [64, 7])
def test_equals_stock_forwards_however_the_prompt_is_cut(expected, make_harness, chunk):
    loaded, settings, wanted = expected
    harness = make_harness(loaded, prefill_tokens=chunk)
    plain = harness.alone(TEXT, greedy(TOKENS)).tokens
    ids = {name: harness.submit(TEXT, greedy(TOKENS), used) for name, used in settings.items()}
    outcomes = harness.run()
    for name, id_ in ids.items():
        tokens, counted = wanted[name]
        assert outcomes[id_].tokens == tokens, name
        # The last token drawn is never read.
        assert sorted(hits(outcomes[id_])) == sorted(counted), name
        assert 0 < min(counted) <= max(counted) <= len(TEXT) + TOKENS - 1
    assert sum(tokens != plain for tokens, _ in wanted.values()) >= 5
    assert_all_free(harness)


def test_what_is_reused_of_a_prefix_brings_the_gates_state(expected, make_harness):
    loaded, settings, wanted = expected
    harness = make_harness(loaded, prefix_bytes=1 << 24, prefill_tokens=24)
    plain = harness.alone(TEXT, greedy(TOKENS)).tokens
    for first, second in itertools.pairwise(settings):
        for name in (first, second):
            outcome = harness.alone(TEXT, greedy(TOKENS), settings[name])
            assert outcome.tokens == wanted[name][0], (first, second, name)
            assert sorted(hits(outcome)) == sorted(wanted[name][1]), (first, second, name)
            receipts = [(r.prompt_tokens, r.generated_tokens) for r in outcome.end.receipts if r.gate_hits is not None]
            assert sorted(map(sum, receipts)) == sorted(wanted[name][1])
    assert harness.alone(TEXT, greedy(TOKENS)).tokens == plain
    counts = harness.engine._runner.reuse.counts
    assert counts.reused == (len(settings) - 1) * (len(TEXT) // BLOCK) * BLOCK
    assert counts.resumed > 0


def test_a_prompt_that_goes_on_from_reused_blocks_finds_the_gate_open(llama, make_harness):
    """The gate opens in the blocks that are reused, and is held; what comes after them has to know."""
    by = fitting(llama, 0, 0.02, hold=10**6)
    used = (gated(vector("add", (1,), 3.0, apply=Apply(prompt=NONE)), by),)
    assert any(score > by.mark.on for score in scores_of(llama, TEXT, by)[:48])
    harness = make_harness(llama, prefix_bytes=1 << 24)
    harness.alone(TEXT, greedy(2), used)
    longer = [*TEXT[:48], 90, 91, 92]
    assert scores_of(llama, longer, by)[48:] == pytest.approx(
        [s for s in scores_of(llama, longer, by)[48:] if s <= by.mark.on]
    )
    outcome = harness.alone(longer, greedy(TOKENS), used)
    alone = make_harness(llama).alone(longer, greedy(TOKENS), used)
    assert outcome.end.cached_tokens == 48
    assert (outcome.tokens, outcome.end.receipts[0].gate_hits) == (alone.tokens, alone.end.receipts[0].gate_hits)
    assert outcome.end.receipts[0].generated_tokens == TOKENS - 1
    assert harness.alone(longer, greedy(TOKENS)).tokens != outcome.tokens


def test_a_chat_that_goes_on_reads_the_answer_again(llama, make_harness):
    """What a gate read of an answer is not kept, so the next turn starts behind the prompt of the last."""
    used = (gated(vector("add", (1,), 8.0), fitting(llama, 0, 0.3)),)
    harness = make_harness(llama, prefix_bytes=1 << 24)
    first = harness.alone(TEXT, greedy(40), used)
    longer = [*TEXT, *first.tokens, 7, 8, 9]
    second = harness.alone(longer, greedy(4), used)
    assert second.end.cached_tokens == (len(TEXT) - 1) // BLOCK * BLOCK
    assert second.tokens == make_harness(llama).alone(longer, greedy(4), used).tokens


def test_a_gate_that_never_opens_changes_no_bit(make_harness):
    closed = gate(0, on=1e9)
    settings = [
        (),
        (gated(switch(layers=(1, 2)), closed),),
        (gated(vector("add", (0,)), closed), gated(vector(), closed)),
    ]
    seen = []
    for used in settings:
        harness = make_harness(tiny_model("llama"))
        logits = record_logits(harness)
        id_ = harness.submit([1, 2, 3], greedy(6), used)
        outcome = harness.run()[id_]
        assert hits(outcome) == [0] * len(used)
        assert all(
            (r.prompt_tokens, r.generated_tokens, r.mean_relative_change) == (0, 0, 0.0) for r in outcome.end.receipts
        )
        seen.append(torch.stack(logits[id_]))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_a_gate_that_is_always_open_is_no_gate(make_harness):
    seen = []
    for by in (None, gate(0, on=-1e9, off=-1e9)):
        harness = make_harness(tiny_model("llama"))
        logits = record_logits(harness)
        used = (switch(layers=(1, 2)), vector("ablate", (1,)))
        id_ = harness.submit([1, 2, 3, 4], greedy(6), [one if by is None else gated(one, by) for one in used])
        receipts = harness.run()[id_].end.receipts
        seen.append((torch.stack(logits[id_]), [(r.prompt_tokens, r.generated_tokens) for r in receipts]))
        assert [r.gate_hits for r in receipts] == ([None, None] if by is None else [9, 9])
        assert [r.mean_relative_change for r in receipts] != [0.0, 0.0]
    assert torch.equal(seen[0][0], seen[1][0])
    assert seen[0][1] == seen[1][1]


def test_a_neighbours_gate_leaves_a_row_bit_identical(make_harness):
    """Open, closed, half of the time, and with a probe that is not a number: the same batch, the same bits."""
    broken = gate(1, on=0.0)
    broken.probe.weight_D[0] = torch.nan
    neighbours = [
        (),
        *((gated(switch(layers=(1,)), by),) for by in (gate(0, on=-9e9), gate(0, on=9e9), gate(0), broken)),
    ]
    runs = []
    for neighbour in neighbours:
        harness = make_harness(tiny_model("llama"))
        logits = record_logits(harness)
        harness.submit([9, 8, 7, 6, 5], greedy(8), neighbour)
        watched = harness.submit([5, 6, 7, 8, 9], greedy(8), (gated(vector("add", (2,), 0.5), gate(1, seed=5)),))
        harness.step()
        harness.step() if neighbour != neighbours[-1] else None
        runs.append(logits[watched])
    for run in runs[1:]:
        assert torch.equal(run[0], runs[0][0])
    for run in runs[1:-1]:
        assert torch.equal(run[1], runs[0][1])


def test_each_row_of_a_batch_has_a_gate_of_its_own(llama, make_harness):
    settings = [
        (gated(vector("add", (1,), 2.0, seed=i), fitting(llama, i % 2, 0.1 * (i % 4 + 1), seed=i)),) for i in range(8)
    ]
    harness = make_harness(llama, prefill_tokens=50)
    prompts = [TEXT[i : i + 20 + i] for i in range(8)]
    solo = [harness.alone(p, greedy(10), used) for p, used in zip(prompts, settings, strict=True)]
    ids = [harness.submit(p, greedy(10), used) for p, used in zip(prompts, settings, strict=True)]
    outcomes = harness.run()
    for id_, alone in zip(ids, solo, strict=True):
        assert (outcomes[id_].tokens, hits(outcomes[id_])) == (alone.tokens, hits(alone))
    assert len({tuple(hits(one)) for one in solo}) > 4


def test_a_probe_that_is_not_a_number_fails_closed(harness):
    broken = gate(1, on=0.0)
    broken.probe.weight_D[0] = torch.nan
    bad = harness.submit([1, 2, 3], greedy(), (gated(vector(), broken),))
    good = harness.submit([1, 2, 3], greedy())
    outcomes = harness.run()
    assert (outcomes[bad].end.code, outcomes[bad].tokens) == ("non_finite", [])
    assert isinstance(outcomes[good].end, Finished)


def test_a_probe_that_raises_ends_its_own_row_only(harness):
    broken = gate(1)
    object.__setattr__(broken.probe, "weight_D", torch.ones(5))
    bad = harness.submit([1, 2, 3], greedy(), (gated(vector(), broken),))
    good = harness.submit([1, 2, 3], greedy())
    outcomes = harness.run()
    assert (outcomes[bad].end.code, outcomes[bad].tokens) == ("intervention_failed", [])
    assert isinstance(outcomes[good].end, Finished)


def test_a_gate_whose_site_does_not_fire_ends_the_row(harness):
    """Fail closed, also where nothing would have been changed."""
    harness.engine._runner._hooks.remove()
    late = vector("add", (2,), apply=Apply(prompt=NONE, generation=Positions("window", 5, None)))
    bad = harness.submit([1, 2, 3], greedy(4), (gated(late, gate(0, on=1e9)),))
    outcome = harness.run()[bad]
    assert isinstance(outcome.end, Failed)
    assert (outcome.end.code, outcome.tokens) == ("intervention_failed", [])


def test_a_change_while_it_runs(llama, make_harness):
    """A gate that is put on starts closed with the next token; one that stays keeps its state whatever the strength."""
    before = (gated(vector("add", (1,), 8.0), fitting(llama, 0, 0.02, hold=10**6)),)
    other = (gated(vector("add", (1,), 2.0, seed=4), fitting(llama, 1, 0.5, seed=2)),)
    harness = make_harness(llama)
    stays = harness.submit(TEXT, greedy(TOKENS), before)
    changed = harness.submit(TEXT, greedy(TOKENS), before)
    while len(harness.outcomes[changed].tokens) < 4:
        harness.step()
    same = gated(vector("add", (1,), 1.0), before[0].gate)
    harness.engine.update(stays, InterventionUpdate(steering=(same,)))
    harness.engine.update(changed, InterventionUpdate(steering=other))
    outcomes = harness.run()
    tokens, counted = oracle(llama, TEXT, before, TOKENS, change_at=4, later=other)
    assert outcomes[changed].tokens == tokens
    assert sorted(hits(outcomes[changed])) == sorted(counted)
    (receipt,) = outcomes[stays].end.receipts
    opened = next(i for i, score in enumerate(scores_of(llama, TEXT, before[0].gate)) if score > before[0].gate.mark.on)
    assert receipt.gate_hits == len(TEXT) + TOKENS - 1 - opened


def test_settings_that_are_compared_have_gates_of_their_own(llama, make_harness):
    used = (gated(vector("add", (1,), 8.0), fitting(llama, 0, 0.3)),)
    harness = make_harness(llama, prefill_tokens=16)
    text = harness.alone(TEXT, greedy(8), used).tokens
    same = harness.compare(TEXT, text, [used, used, ()])
    outcomes = harness.run()
    assert outcomes[same[1]].divergences == pytest.approx([0.0] * 8, abs=1e-6)
    assert max(outcomes[same[2]].divergences) > 1e-3
    assert len(set(map(tuple, map(hits, (outcomes[id_] for id_ in same[:2]))))) == 1
    assert Site(1) in used[0].sites
