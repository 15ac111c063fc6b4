"""What a row gets depends on that row alone."""

import random

import pytest
import torch

from mappers.sites import Site
from server.engine.request import InterventionUpdate
from server.engine.runner import Runner
from server.interventions.catalog import ResolvedIntervention
from server.types import NONE, Apply, Failed, Finished, Positions, SamplingParams
from tests.server.engine.conftest import greedy, record_logits, tiny_model
from tests.server.engine.interventions import direction, switch, vector

pytestmark = pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])


def mixed_interventions() -> list[tuple]:
    """32 different settings: off, switches of several kinds and strengths, vectors, windows, several at once."""
    window = Apply(prompt=Positions("window", 1, 4), generation=Positions("window", 2, 9))
    last = Apply(prompt=Positions("last"), generation=NONE)
    listed = Apply(prompt=Positions("listed", indices=(0, -1)), generation=Positions("listed", indices=(0, 3)))
    settings = [(), (), (), ()]
    settings += [
        (switch(kind, residual),) for kind in ("autoencoder", "affine", "low_rank") for residual in (True, False)
    ]
    settings += [(switch(strength=s),) for s in (0.1, 0.5, 0.9, -0.5)]
    settings += [(vector("add", (layer,), 3.0, seed=layer),) for layer in range(3)]
    settings += [(vector("ablate", (0, 1, 2), seed=9),), (vector("clamp", (1,), seed=4, minimum=-0.1, maximum=0.1),)]
    settings += [(vector("add", (1,), 4.0, seed=5, apply=a),) for a in (window, last, listed)]
    settings += [(switch(apply=a),) for a in (window, last, listed)]
    settings += [(switch(layers=(0, 2)), vector("add", (0,), 2.0, seed=7), vector("ablate", (2,), seed=8))]
    settings += [(vector("add", (1,), 1.0, seed=s), switch(seed=s)) for s in range(32 - len(settings))]
    return settings


def mixed_prompts(count: int) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(1, 256) for _ in range(rng.randrange(5, 20))] for _ in range(count)]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_each_row_of_a_mixed_batch_equals_its_solo_run(kind, make_harness):
    harness = make_harness(tiny_model(kind), prefill_tokens=40)
    settings = mixed_interventions()
    prompts = mixed_prompts(len(settings))
    logits = record_logits(harness)
    solo = [harness.alone(p, greedy(16), s) for p, s in zip(prompts, settings, strict=True)]
    solo_logits = list(logits.values())
    logits.clear()
    ids = [harness.submit(p, greedy(16), s) for p, s in zip(prompts, settings, strict=True)]
    outcomes = harness.run()
    assert len(settings) == 32
    for id_, alone, alone_logits in zip(ids, solo, solo_logits, strict=True):
        assert outcomes[id_].tokens == alone.tokens
        scale = max(float(x.abs().max()) for x in alone_logits)
        for mixed, single in zip(logits[id_], alone_logits, strict=True):
            assert float((mixed - single).abs().max()) <= 1e-5 * max(scale, 1.0)
    assert len({tuple(o.tokens) for o in solo}) > 16, "the interventions have to matter"


def test_change_of_a_neighbour_leaves_a_row_bit_identical(make_harness):
    """Same batch composition, another intervention on row 0 each time, among them NaN: row 1 stays ``torch.equal``."""
    nan = vector("add", (1,), seed=1)
    nan.effects[Site(1)][3] = float("nan")
    neighbours = [(), (vector("add", (0,), 5.0),), (switch(),), (switch(layers=(0, 1, 2)), vector("ablate")), (nan,)]
    runs = []
    for neighbour in neighbours:
        harness = make_harness(tiny_model("llama"))
        logits = record_logits(harness)
        harness.submit([9, 8, 7, 6, 5], greedy(8), neighbour)
        watched = harness.submit([5, 6, 7, 8, 9], greedy(8))
        harness.step()
        runs.append((harness, logits[watched][0]))
    for _, first in runs[1:]:
        assert torch.equal(first, runs[0][1])


def test_decode_steps_of_a_neighbour_leave_a_row_bit_identical(make_harness):
    steered = (vector("add", (1,), 2.0, apply=Apply(prompt=NONE)),)
    runs = []
    for neighbour in ((), steered, (switch(apply=Apply(prompt=NONE)),)):
        harness = make_harness(tiny_model("llama"))
        logits = record_logits(harness)
        harness.submit([9, 8, 7, 6, 5], greedy(12), neighbour)
        watched = harness.submit([5, 6, 7, 8, 9], greedy(12))
        harness.run()
        runs.append(torch.stack(logits[watched]))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_bare_rows_equal_the_model_without_hooks_bit_for_bit(make_harness):
    harness = make_harness(tiny_model("llama"))
    logits = record_logits(harness)
    prompts = mixed_prompts(6)
    with_hooks = [harness.submit(p, greedy(10)) for p in prompts]
    harness.run()
    first = [torch.stack(logits[i]) for i in with_hooks]
    harness.engine._runner._hooks.remove()
    assert not any(block._forward_hooks for block in harness.loaded.stack.blocks)
    without = [harness.submit(p, greedy(10)) for p in prompts]
    harness.run()
    for with_, id_ in zip(first, without, strict=True):
        assert torch.equal(with_, torch.stack(logits[id_]))


def test_strength_zero_equals_no_intervention_bit_for_bit(make_harness):
    nothing = [(), (vector(strength=0.0),), (switch(strength=0.0), vector("ablate", strength=0.0))]
    seen = []
    for settings in nothing:
        harness = make_harness(tiny_model("llama"))
        logits = record_logits(harness)
        id_ = harness.submit([1, 2, 3], greedy(6), settings)
        harness.run()
        seen.append(torch.stack(logits[id_]))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_rows_driven_to_nan_fail_and_leave_nothing_behind(harness):
    """Their slots are reused by clean rows, whose result must not change."""
    prompts = mixed_prompts(8)
    expected = [harness.alone(p).tokens for p in prompts]
    for _ in range(2):
        huge = [harness.submit(p, greedy(), (vector(strength=1e38, size=1e30),)) for p in prompts]
        clean = [harness.submit(p) for p in prompts]
        outcomes = harness.run()
        for id_ in huge:
            assert isinstance(outcomes[id_].end, Failed)
            assert outcomes[id_].end.code == "non_finite"
            assert outcomes[id_].tokens == []
        assert [outcomes[i].tokens for i in clean] == expected


@pytest.mark.parametrize("size", [1e20, 1e30, 3e38])
def test_an_overflow_that_a_norm_turns_into_zeros_fails(harness, size):
    """Every activation is finite, its square is not: the logits are those of no model, though finite."""
    ids = [harness.submit([4, 5, 6], greedy(), (vector("add", (layer,), size=size),)) for layer in range(2)]
    clean = harness.submit([4, 5, 6])
    outcomes = harness.run()
    assert [(outcomes[i].end.code, outcomes[i].tokens) for i in ids] == [("non_finite", [])] * 2
    assert outcomes[clean].tokens == harness.alone([4, 5, 6]).tokens


def test_nan_in_a_row_that_samples_ends_that_row_only(harness):
    expected = harness.alone([4, 5, 6]).tokens
    sampled = SamplingParams(max_tokens=8, seed=1, logprobs=2)
    bad = harness.submit([4, 5, 6], sampled, (vector(strength=1e38, size=1e30),))
    good = [harness.submit([4, 5, 6]), harness.submit([4, 5, 6], greedy(logprobs=2))]
    outcomes = harness.run()
    assert (outcomes[bad].end.code, outcomes[bad].tokens) == ("non_finite", [])
    assert [outcomes[i].tokens for i in good] == [expected] * 2


def test_nan_in_the_middle_of_a_generation(harness):
    late = vector("add", strength=1e38, size=1e30, apply=Apply(prompt=NONE, generation=Positions("window", 4, None)))
    expected = harness.alone([4, 5, 6]).tokens
    bad = harness.submit([4, 5, 6], greedy(), (late,))
    good = [harness.submit([4, 5, 6]) for _ in range(3)]
    outcomes = harness.run()
    assert outcomes[bad].tokens == expected[:5]
    assert outcomes[bad].end.code == "non_finite"
    assert all(outcomes[i].tokens == expected for i in good)


def test_an_operation_that_raises_ends_its_own_rows_only(harness):
    broken = vector("add", (1,))
    broken.effects[Site(1)] = direction(0)[:5]
    expected = harness.alone([1, 2, 3]).tokens
    bad = harness.submit([1, 2, 3], greedy(), (broken,))
    good = harness.submit([1, 2, 3])
    switched = harness.submit([1, 2, 3], greedy(), (switch(),))
    outcomes = harness.run()
    assert outcomes[bad].end.code == "intervention_failed"
    assert outcomes[bad].tokens == []
    assert outcomes[good].tokens == expected
    assert isinstance(outcomes[switched].end, Finished)


def test_a_planned_site_that_does_not_fire_ends_the_row(harness, monkeypatch):
    """Fail closed: without its hook the answer must be an error, never unsteered text."""
    harness.engine._runner._hooks.remove()
    steered = harness.submit([1, 2, 3], greedy(), (vector(),))
    plain = harness.submit([1, 2, 3])
    outcomes = harness.run()
    assert outcomes[steered].end.code == "intervention_failed"
    assert outcomes[steered].tokens == []
    assert isinstance(outcomes[plain].end, Finished)


def test_changes_of_running_neighbours_do_not_reach_a_row(harness):
    """A row beside rows that are patched mid-stream gets its solo tokens; so do rows patched at the same step alone."""
    prompt, settings = [3, 1, 4, 1, 5], (switch(strength=1.0),)
    changed = InterventionUpdate(switch=(switch(strength=0.25),))

    def run(neighbours: int) -> tuple[list[int], list[int]]:
        watched = harness.submit(prompt, greedy(20))
        patched = harness.submit(prompt, greedy(20), settings)
        others = [harness.submit(prompt, greedy(20), (vector(strength=2.0, seed=i),)) for i in range(neighbours)]
        for _ in range(6):
            harness.step()
        harness.engine.update(patched, changed)
        for other in others:
            harness.engine.update(other, InterventionUpdate(steering=()))
        outcomes = harness.run()
        return outcomes[watched].tokens, outcomes[patched].tokens

    assert run(0) == run(7)
    assert run(0)[1] != harness.alone(prompt, greedy(20), settings).tokens


def test_weights_and_hooks_are_unchanged_by_use(harness):
    weights = {k: v.clone() for k, v in harness.loaded.model.state_dict().items()}
    hooks = [list(block._forward_hooks) for block in harness.loaded.stack.blocks]
    for settings in mixed_interventions():
        harness.submit([1, 2, 3, 4, 5], greedy(4), settings)
    harness.run()
    assert all(torch.equal(v, weights[k]) for k, v in harness.loaded.model.state_dict().items())
    assert [list(block._forward_hooks) for block in harness.loaded.stack.blocks] == hooks


def test_sampled_rows_do_not_depend_on_neighbours(harness):
    sampling = SamplingParams(max_tokens=20, temperature=0.9, top_p=0.9, top_k=50, seed=7, ignore_eos=True)
    alone = harness.alone([1, 2, 3], sampling).tokens
    watched = harness.submit([1, 2, 3], sampling)
    for seed in range(10):
        harness.submit([4, 5, seed], SamplingParams(max_tokens=20, temperature=1.5, seed=seed, min_p=0.05))
    assert harness.run()[watched].tokens == alone
    other = SamplingParams(max_tokens=20, temperature=0.9, top_p=0.9, top_k=50, seed=8, ignore_eos=True)
    assert harness.alone([1, 2, 3], other).tokens != alone


def test_same_prompt_steered_and_plain_never_share_keys(harness):
    prompt = [7, 7, 7, 7, 7, 7]
    plain, steered = harness.alone(prompt).tokens, harness.alone(prompt, greedy(), (vector(strength=4.0),)).tokens
    assert plain != steered
    ids = [harness.submit(prompt, greedy(), (vector(strength=4.0),) if i % 2 else ()) for i in range(8)]
    outcomes = harness.run()
    assert [outcomes[i].tokens for i in ids] == [plain, steered] * 4


def test_layers_below_a_site_are_untouched_and_the_site_gets_the_function(llama, make_harness):
    """Locality, with stock forwards and hooks of the test's own as the oracle."""
    harness = make_harness(llama)
    runner: Runner = harness.engine._runner
    outputs: dict[int, list[torch.Tensor]] = {}
    for layer, block in enumerate(llama.stack.blocks):
        block.forward, original = _spy(outputs, layer, block.forward), block.forward
        block.original_forward = original
    try:
        harness.alone([5, 6, 7, 8], greedy(1))
        bare, outputs_bare = None, {k: v[-1] for k, v in outputs.items()}
        assert bare is None
        used: ResolvedIntervention = vector("add", (1,), 2.0, apply=Apply(prompt=Positions("listed", indices=(1, 2))))
        harness.alone([5, 6, 7, 8], greedy(1), (used,))
    finally:
        for block in llama.stack.blocks:
            block.forward = block.original_forward
    assert torch.equal(outputs[0][-1], outputs_bare[0])
    assert torch.equal(outputs[1][-1], outputs_bare[1]), "the block itself runs on the same input"
    above = outputs[2][-1] - outputs_bare[2]
    assert torch.equal(above[0, 0], torch.zeros_like(above[0, 0])), "an earlier token cannot see a later change"
    assert float(above[0, 1:].abs().max()) > 0
    assert runner.meters.in_use == 0


def _spy(outputs, layer, forward):
    def spy(*args, **kwargs):
        out = forward(*args, **kwargs)
        outputs.setdefault(layer, []).append((out[0] if isinstance(out, tuple) else out).clone())
        return out

    return spy
