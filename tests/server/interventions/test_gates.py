"""When a gate is open: against a loop over the tokens, in an eager plan and in a static one."""

import random

import pytest
import torch

from mappers.sites import Site
from server.interventions.active import ActiveIntervention
from server.interventions.draft import PlanRow
from server.interventions.gates import FOREVER, open_for
from server.interventions.meter import MeterBank
from server.interventions.plan import BatchPlan
from server.interventions.static import StaticPlan
from server.interventions.structure import NotStatic, Structure
from server.types import NONE, Apply, Positions
from tests.server.engine.interventions import WIDTH, gate, gated, switch, vector
from tests.server.engine.test_hooks import Stage

ROWS = 8
SITES = (Site(0), Site(1), Site(2))


def step(left, score, on, off, hold):
    """The definition: what one token does to a gate's state."""
    if not score <= on:
        return hold
    return 0 if score < off else max(left - 1, 0)


def states(scores, on, off, hold, left=0):
    found = []
    for score in scores:
        left = step(left, score, on, off, hold)
        found.append(left)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_states_equal_a_loop_over_the_tokens_however_they_are_cut(seed):
    rng = random.Random(seed)
    gates = []
    for _ in range(rng.randrange(1, 5)):
        scores = [rng.choice([rng.gauss(0, 1), float("nan"), float("inf"), -float("inf")]) for _ in range(30)]
        hold = rng.choice([1, 2, 5, FOREVER])
        off = rng.choice([-float("inf"), -0.7, 0.5])
        gates.append((scores, 0.5, off, hold))
    before, cut, seen = [0] * len(gates), 0, [[] for _ in gates]
    while cut < 30:
        size = rng.randrange(1, 12)
        parts = [scores[cut : cut + size] for scores, *_ in gates]
        lengths = [len(part) for part in parts]
        starts = [sum(lengths[:i]) for i in range(len(parts))]

        def spread(values, dtype, lengths=lengths):
            return torch.tensor([v for v, n in zip(values, lengths, strict=True) for _ in range(n)], dtype=dtype)

        left_K = open_for(
            torch.tensor([score for part in parts for score in part]),
            *(spread([one[i] for one in gates], torch.float32) for i in (1, 2)),
            spread([one[3] for one in gates], torch.int64),
            spread(before, torch.int64),
            spread(starts, torch.int64),
        )
        for found, part in zip(seen, left_K.split(lengths), strict=True):
            found += part.tolist()
        before, cut = [found[-1] for found in seen], cut + size
    assert seen == [states(*one) for one in gates]


def row_at(settings, meters, first=0, start=0, count=1, prompt_len=4, index=0):
    return PlanRow(index, first, start, count, prompt_len, [ActiveIntervention.begin(one, meters) for one in settings])


def oracle(settings, h_TD, left=0):
    """Vectors behind one gate each, over all tokens of one row; the outputs of SITES are the same activations."""
    for site in SITES:
        before_TD = h_TD
        for used in settings:
            if site not in used.sites:
                continue
            probe, mark = used.gate.probe, used.gate.mark
            assert mark.site == site, "the oracle has read nothing at other sites"
            on = [x > 0 for x in states(probe.scores(before_TD).tolist(), mark.on, mark.off, mark.hold, left)]
            h_TD = torch.where(torch.tensor(on)[:, None], h_TD + used.strength * used.effects[site], h_TD)
    return h_TD


def test_a_chunk_is_changed_from_the_token_on_at_which_the_gate_opens():
    stage = Stage()
    h_ND = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(1)) * 3
    used = gated(vector("add", (1,), 2.0), layer=1, on=0.7, off=-0.7)
    row = row_at([used], stage.meters, count=20, prompt_len=15)
    out, failed = stage.forward(BatchPlan.build([row], 20, "cpu"), h_ND)
    assert failed == {}
    assert torch.equal(out, oracle([used], h_ND))
    changed = (out != h_ND).any(1)
    assert 0 < int(changed.sum()) < 20
    assert torch.equal(out[~changed], h_ND[~changed])
    receipt = row.interventions[0].end(stage.meters)
    assert receipt.gate_hits == int(changed.sum())
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (int(changed[:15].sum()), int(changed[15:].sum()))
    assert receipt.mean_relative_change == pytest.approx(float((2.0 / h_ND[changed].norm(dim=1)).mean()), rel=1e-4)


def test_the_gate_reads_tokens_that_the_intervention_leaves_alone():
    """``apply`` narrows what is changed, not what is read; hits count what was read."""
    stage = Stage()
    h_ND = torch.zeros(10, WIDTH)
    by = gate(layer=0, on=0.5, hold=FOREVER // 2)
    h_ND[2] = 5 * by.probe.weight_D
    late = Apply(prompt=NONE, generation=Positions("window", 1, 3))
    row = row_at([gated(vector("add", (1,), 2.0, apply=late), by)], stage.meters, count=10, prompt_len=6)
    out, _ = stage.forward(BatchPlan.build([row], 10, "cpu"), h_ND)
    assert (out != h_ND).any(1).nonzero().flatten().tolist() == [7, 8]
    receipt = row.interventions[0].end(stage.meters)
    assert (receipt.gate_hits, receipt.prompt_tokens, receipt.generated_tokens) == (8, 0, 2)


def test_a_score_that_is_no_number_opens_the_gate_and_spoils_the_meter():
    stage = Stage()
    h_ND = torch.zeros(2, WIDTH)
    h_ND[0, 3] = torch.inf
    used = gated(vector("add", (1,), 2.0), layer=1, on=1e30)
    used.gate.probe.weight_D[3] = 0.0
    row = row_at([used], stage.meters, count=2)
    out, _ = stage.forward(BatchPlan.build([row], 2, "cpu"), h_ND)
    assert (out != h_ND).any(1).tolist() == [True, False]
    assert stage.meters.overflowed() == {row.interventions[0].meter}


def test_a_mapper_that_gives_nan_does_nothing_while_the_gate_is_closed():
    stage = Stage()
    broken = switch(layers=(1,))
    broken.effects[Site(1)].decoder_weight.fill_(torch.nan)
    row = row_at([gated(broken, layer=0, on=1e9)], stage.meters, count=4)
    h_ND = torch.randn(4, WIDTH)
    out, failed = stage.forward(BatchPlan.build([row], 4, "cpu"), h_ND)
    assert torch.equal(out, h_ND)
    assert (failed, stage.meters.overflowed()) == ({}, frozenset())


def random_settings(rng):
    """For each row up to three vectors or switches, most of them behind a gate at their site or below."""
    settings = []
    for _ in range(ROWS):
        used = []
        for _ in range(rng.randrange(4)):
            layer = rng.randrange(3)
            how = (
                {"on": rng.choice([-0.3, 0.0, 0.8]), "off": -1.0} if rng.random() < 0.5 else {"hold": rng.randrange(3)}
            )
            effect = switch(layers=(layer,)) if rng.random() < 0.5 else vector("add", (layer,), 1.5, rng.randrange(4))
            behind = gate(rng.randrange(layer + 1), rng.randrange(3), **how)
            used.append(effect if rng.random() < 0.3 else gated(effect, behind))
        settings.append(tuple(used))
    return settings


@pytest.mark.parametrize("seed", range(12))
def test_static_steps_equal_eager_ones(seed):
    rng = random.Random(seed)
    settings = random_settings(rng)
    places = rng.sample(range(ROWS), ROWS)
    stage, meters = Stage(), MeterBank("cpu")

    def rows(bank):
        return [
            row_at(used, bank, place, 4, index=i) for i, (used, place) in enumerate(zip(settings, places, strict=True))
        ]

    eager, static = rows(stage.meters), rows(meters)
    structure = Structure.of(static)
    plan = StaticPlan(structure, ROWS + 2, WIDTH, "cpu", meters)
    for turn in range(6):
        h_RD = torch.randn(ROWS + 2, WIDTH, generator=torch.Generator().manual_seed(turn))
        h_RD[ROWS:] = torch.nan
        expected, failed = stage.forward(BatchPlan.build(eager, ROWS, "cpu"), h_RD[:ROWS])
        plan.fill(static)
        plan.begin()
        found = h_RD
        for site in SITES:
            found = plan.apply(site, found)
        assert (failed, plan.unfired()) == ({}, ())
        torch.testing.assert_close(found[:ROWS], expected, rtol=1e-5, atol=1e-6)
        plan.commit(())
    assert meters.overflowed() == frozenset()
    for mine, theirs in zip(static, eager, strict=True):
        for one, other in zip(mine.interventions, theirs.interventions, strict=True):
            found, wanted = one.end(meters), other.end(stage.meters)
            assert (found.gate_hits, found.prompt_tokens, found.generated_tokens) == (
                wanted.gate_hits, wanted.prompt_tokens, wanted.generated_tokens,
            )  # fmt: skip
            assert found.mean_relative_change == pytest.approx(wanted.mean_relative_change, rel=1e-4, abs=1e-7)


def test_other_probes_thresholds_and_rows_need_no_new_structure():
    one = [row_at([gated(vector(), seed=i, on=0.1 * i)], MeterBank("cpu"), i) for i in range(3)]
    other = [row_at([gated(vector(seed=9), seed=5, hold=2)], MeterBank("cpu"), i + 1) for i in range(3)]
    assert Structure.of(one) == Structure.of(other)
    StaticPlan(Structure.of(one), 4, WIDTH, "cpu", MeterBank("cpu")).fill(other)


def test_more_gates_than_a_plan_has_room_for_are_refused():
    meters = MeterBank("cpu")
    structure = Structure.of([row_at([vector(), gated(vector(seed=1))], meters)])
    plan = StaticPlan(structure, 4, WIDTH, "cpu", meters)
    plan.fill([row_at([gated(vector(seed=1)), vector()], meters)])
    for used in ([gated(vector()), gated(vector(seed=1))], [gated(vector(), layer=1)]):
        with pytest.raises(NotStatic, match="no room for the gates at"):
            plan.fill([row_at(used, meters)])


def test_a_gate_belongs_below_the_layer_at_which_a_forward_resumes():
    with pytest.raises(AssertionError, match="never resumes above"):
        BatchPlan.build([row_at([gated(vector("add", (2,)))], MeterBank("cpu"))], 1, "cpu", lowest=1)
