"""Plans of one forward against a slow reference that applies each intervention to each token by itself."""

import random

import pytest
import torch

from mappers.sites import Site
from server.interventions import operations
from server.interventions.active import ActiveIntervention
from server.interventions.bank import MapperBank
from server.interventions.meter import MeterBank
from server.interventions.plan import BatchPlan, PlanRow
from server.interventions.positions import active_offsets
from server.types import NONE, Apply, Positions
from tests.server.engine.interventions import WIDTH, switch, vector

TOKENS = 6


def rows_of(*settings, start=0, prompt_len=4, count=TOKENS):
    meters = MeterBank("cpu")
    return [
        PlanRow(i, i * count, start, count, prompt_len, [ActiveIntervention.begin(r, meters) for r in used])
        for i, used in enumerate(settings)
    ]


def run(plan: BatchPlan, site: Site, h_BTD: torch.Tensor, bank: MapperBank | None = None) -> torch.Tensor:
    bank = bank or MapperBank()
    bank.begin_plan()
    out_ND = h_BTD.reshape(-1, WIDTH).clone()
    for one in plan.rounds.get(site, ()):
        chosen = slice(None) if one.tokens_K is None else one.tokens_K
        before_KD = out_ND[chosen]
        out_ND[chosen] = torch.cat([group.compute(before_KD[group.span], bank) for group in one.groups])
    return out_ND.view_as(h_BTD)


def one_by_one(rows, site: Site, h_BTD: torch.Tensor) -> torch.Tensor:
    out_BTD = h_BTD.clone()
    for row in rows:
        for active in row.interventions:
            used = active.resolved
            if site not in used.sites:
                continue
            for offset in active_offsets(used.apply, row.start, row.count, row.prompt_len):
                h_1D, a_1 = out_BTD[row.index, offset][None], torch.tensor([used.strength])
                effect = used.effects[site]
                if used.operation == "switch":
                    done = operations.switch(h_1D, effect, a_1)
                elif used.operation == "clamp":
                    bounds = torch.tensor([used.minimum]), torch.tensor([used.maximum])
                    done = operations.clamp(h_1D, operations.unit(effect[None]), a_1, *bounds)
                elif used.operation == "ablate":
                    done = operations.ablate(h_1D, operations.unit(effect[None]), a_1)
                else:
                    done = operations.add(h_1D, effect[None], a_1)
                out_BTD[row.index, offset] = done[0]
    return out_BTD


def some_interventions(rng: random.Random, shared):
    windows = [Apply(), Apply(NONE, Positions("window", 1, 3)), Apply(Positions("last"), NONE)]
    made = []
    for _ in range(rng.randrange(4)):
        apply, strength = rng.choice(windows), rng.choice([0.0, 0.5, 1.0, -1.0])
        layers = tuple(sorted(rng.sample(range(3), rng.randrange(1, 4))))
        kind = rng.choice(["add", "ablate", "clamp", "switch", "shared"])
        bounds = {"minimum": -0.1, "maximum": 0.1} if kind == "clamp" else {}
        if kind == "shared":
            made.append(shared)
        elif kind == "switch":
            made.append(switch(layers=layers, strength=strength, seed=rng.randrange(3), apply=apply))
        else:
            made.append(vector(kind, layers, strength, rng.randrange(3), apply, **bounds))
    return made


@pytest.mark.parametrize("seed", range(25))
def test_equals_one_intervention_after_the_other(seed):
    rng = random.Random(seed)
    shared = switch(layers=(0, 1, 2), strength=0.7)
    rows = rows_of(*(some_interventions(rng, shared) for _ in range(5)), start=rng.choice([0, 2, 9]))
    plan = BatchPlan.build(rows, len(rows) * TOKENS, "cpu")
    h_BTD = torch.randn(5, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))
    for layer in range(3):
        torch.testing.assert_close(run(plan, Site(layer), h_BTD), one_by_one(rows, Site(layer), h_BTD))


def test_order_of_the_request_is_the_order_of_application():
    ablate, add = vector("ablate", seed=1), vector("add", seed=1, strength=2.0)
    h_BTD = torch.randn(2, TOKENS, WIDTH)
    plan = BatchPlan.build(rows_of((ablate, add), (add, ablate)), 2 * TOKENS, "cpu")
    done = run(plan, Site(1), h_BTD)
    v_D = add.effects[Site(1)]
    torch.testing.assert_close((done[0] * v_D).sum(-1), torch.full((TOKENS,), 2.0))
    torch.testing.assert_close((done[1] * v_D).sum(-1), torch.zeros(TOKENS), atol=1e-5, rtol=0)


def test_rows_that_share_a_mapper_share_a_product():
    shared = switch()
    plan = BatchPlan.build(rows_of((shared,), (), (shared,)), 3 * TOKENS, "cpu")
    (one,) = plan.rounds[Site(1)]
    ((use,),) = (group.uses for group in one.groups)
    assert use.rows == one.groups[0].rows == (0, 2)
    assert plan.rows_at(Site(1)) == {0, 2}
    assert use.tokens == len(one.tokens_K) == 2 * TOKENS


def test_tokens_of_other_rows_are_never_touched():
    """A decode row between two prompt chunks: tokens are counted from the row's first, whatever lies around it."""
    meters = MeterBank("cpu")
    used = [ActiveIntervention.begin(vector(), meters)]
    rows = [PlanRow(0, 0, 0, 5, 9, ()), PlanRow(1, 5, 12, 1, 9, used), PlanRow(2, 6, 3, 4, 9, ())]
    assert BatchPlan.build(rows, 10, "cpu").rounds[Site(1)][0].tokens_K.tolist() == [5]


def test_every_token_in_order_needs_no_selection():
    rows = rows_of((vector(),), (vector(seed=1),))
    assert BatchPlan.build(rows, 2 * TOKENS, "cpu").rounds[Site(1)][0].tokens_K is None
    assert BatchPlan.build(rows, 2 * TOKENS + 1, "cpu").rounds[Site(1)][0].tokens_K is not None
    assert BatchPlan.build(rows[::-1], 2 * TOKENS, "cpu").rounds[Site(1)][0].tokens_K is not None


def test_nothing_asked_is_an_empty_plan():
    rows = rows_of((), (vector(strength=0.0),), (switch(apply=Apply(NONE, NONE)),))
    plan = BatchPlan.build(rows, 3 * TOKENS, "cpu")
    assert not plan.sites
    assert not plan.touched


def test_few_tokens_of_many_mappers_share_a_product_and_long_prompts_do_not():
    settings = [[switch(seed=seed)] for seed in range(4)]
    meters = MeterBank("cpu")
    active = [[ActiveIntervention.begin(one, meters) for one in used] for used in settings]
    counts, first, rows = (1, 100, 1, 4), 0, []
    for i, count in enumerate(counts):
        rows.append(PlanRow(i, first, 0, count, 100, active[i]))
        first += count
    batched, alone = BatchPlan.build(rows, first, "cpu").groups[Site(1)]
    assert [use.tokens for use in batched.uses] == [1, 1, 4]
    assert [use.tokens for use in alone.uses] == [100]
    assert (batched.rows, alone.rows) == ((0, 2, 3), (1,))


def test_sites_with_the_same_rows_share_their_tensors():
    rows = rows_of((vector(layers=(0, 1, 2)),), (vector("clamp", (0, 1, 2), minimum=0.0),))
    plan = BatchPlan.build(rows, 2 * TOKENS, "cpu")
    (first,), (last,) = plan.rounds[Site(0)], plan.rounds[Site(2)]
    assert first.meter_K is last.meter_K
    assert first.groups[1].low_K is last.groups[1].low_K
    assert not torch.equal(first.groups[0].v_KD, last.groups[0].v_KD)
