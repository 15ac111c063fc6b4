"""Plans of one forward against a slow reference that applies each intervention to each token by itself."""

import random

import pytest
import torch

from mappers.sites import Site
from server.interventions import operations
from server.interventions.active import ActiveIntervention
from server.interventions.meter import MeterBank
from server.interventions.plan import BatchPlan, MapperBank, PlanRow
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


def build(rows, bank=None) -> BatchPlan:
    return BatchPlan.build(rows, sum(row.count for row in rows), "cpu", bank=bank or MapperBank())


def run(plan: BatchPlan, site: Site, h_BTD: torch.Tensor) -> torch.Tensor:
    out_ND = h_BTD.reshape(-1, WIDTH).clone()
    for group in plan.groups.get(site, ()):
        if group.tokens_K is None:
            out_ND = group.compute(out_ND)
        else:
            out_ND[group.tokens_K] = group.compute(out_ND[group.tokens_K])
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
                    done = operations.clamp(h_1D, effect[None], a_1, *bounds)
                else:
                    done = getattr(operations, used.operation)(h_1D, effect[None], a_1)
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
    plan = build(rows)
    h_BTD = torch.randn(5, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))
    for layer in range(3):
        torch.testing.assert_close(run(plan, Site(layer), h_BTD), one_by_one(rows, Site(layer), h_BTD))


def test_order_of_the_request_is_the_order_of_application():
    ablate, add = vector("ablate", seed=1), vector("add", seed=1, strength=2.0)
    h_BTD = torch.randn(2, TOKENS, WIDTH)
    plan = build(rows_of((ablate, add), (add, ablate)))
    done = run(plan, Site(1), h_BTD)
    v_D = add.effects[Site(1)]
    torch.testing.assert_close((done[0] * v_D).sum(-1), torch.full((TOKENS,), 2.0))
    torch.testing.assert_close((done[1] * v_D).sum(-1), torch.zeros(TOKENS), atol=1e-5, rtol=0)


def test_rows_that_share_a_mapper_share_a_product():
    shared = switch()
    plan = build(rows_of((shared,), (), (shared,)))
    (group,) = plan.groups[Site(1)]
    assert group.rows == {0, 2}
    assert plan.rows_at(Site(1)) == {0, 2}
    assert len(group.tokens_K) == 2 * TOKENS


@pytest.mark.parametrize("kind", ["autoencoder", "affine"])
@pytest.mark.parametrize("residual", [True, False])
def test_many_mappers_that_have_little_to_do_are_computed_together(kind, residual):
    used = [(switch(kind, residual, seed=seed // 2, strength=0.5 + seed / 10),) for seed in range(12)]
    shared = (switch(kind, residual, seed=99),)
    rows = rows_of(*used, shared, (), shared, count=1, prompt_len=0)
    plan = build(rows)
    (group,) = plan.groups[Site(1)]
    assert group.rows == set(range(15)) - {13}
    h_BTD = torch.randn(15, 1, WIDTH)
    torch.testing.assert_close(run(plan, Site(1), h_BTD), one_by_one(rows, Site(1), h_BTD))


def test_mappers_that_come_and_go_keep_the_others_right():
    bank, rng = MapperBank(), random.Random(1)
    made = [switch(seed=seed) for seed in range(40)]
    h_BTD = torch.randn(12, 1, WIDTH)
    for _ in range(30):
        rows = rows_of(*((rng.choice(made),) for _ in range(rng.randrange(4, 13))), count=1, prompt_len=0)
        held_BTD = h_BTD[: len(rows)]
        torch.testing.assert_close(run(build(rows, bank), Site(1), held_BTD), one_by_one(rows, Site(1), held_BTD))


def test_a_mapper_of_nan_computed_with_others_spoils_its_own_row_only():
    used = [(switch(seed=seed),) for seed in range(6)]
    h_BTD = torch.randn(6, 1, WIDTH)
    sound = run(build(rows_of(*used, count=1, prompt_len=0)), Site(1), h_BTD)
    spoilt = switch(seed=2)
    for parameter in spoilt.effects[Site(1)].parameters():
        parameter.fill_(torch.nan)
    done = run(build(rows_of(*used[:2], (spoilt,), *used[3:], count=1, prompt_len=0)), Site(1), h_BTD)
    assert bool(done[2].isnan().all())
    assert torch.equal(done[[0, 1, 3, 4, 5]], sound[[0, 1, 3, 4, 5]])


def test_sites_below_the_lowest_are_left_out():
    rows = rows_of((vector(layers=(0, 2)),), (vector(layers=(0,)),))
    plan = BatchPlan.build(rows, 2 * TOKENS, "cpu", bank=MapperBank(), lowest=1)
    assert plan.sites == {Site(2)}
    assert [touched.row for touched in plan.touched] == [0]


def test_nothing_asked_is_an_empty_plan():
    plan = build(rows_of((), (vector(strength=0.0),), (switch(apply=Apply(NONE, NONE)),)))
    assert not plan.sites
    assert not plan.touched


def test_counts_only_rows_that_did_not_fail():
    rows = rows_of((vector(layers=(0, 2)),), (vector(layers=(0, 2)),))
    build(rows).commit(failed={1})
    assert [(r.interventions[0].prompt_tokens, r.interventions[0].generated_tokens) for r in rows] == [(4, 2), (0, 0)]


def test_a_receipt_names_what_was_used_and_averages_over_tokens_and_sites():
    meters = MeterBank("cpu")
    used = vector(layers=(0, 2), strength=2.0)
    active = ActiveIntervention.begin(used, meters)
    active.touched(3, 1, 2)
    active.reused(5, 0)
    meters.record(torch.full((8,), active.meter), torch.ones(8, 1), torch.full((8, 1), 1.5))
    receipt = active.end(meters)
    assert (receipt.kind, receipt.name, receipt.digest) == ("add", used.name, used.digest)
    assert (receipt.sites, receipt.strength) == (("resid_post.0", "resid_post.2"), 2.0)
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (8, 1)
    assert receipt.mean_relative_change == pytest.approx(0.5)
    assert meters.in_use == 0


def test_a_receipt_without_tokens_has_no_change():
    meters = MeterBank("cpu")
    receipt = ActiveIntervention.begin(vector(), meters).end(meters)
    assert (receipt.prompt_tokens, receipt.mean_relative_change) == (0, 0.0)
