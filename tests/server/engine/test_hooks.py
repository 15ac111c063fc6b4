"""The hooks of one forward over blocks that do nothing: what comes out is what the plan did."""

import pytest
import torch
from torch import nn

from mappers.architectures import DecoderStack
from mappers.sites import Site
from server.engine.hooks import PlanHooks
from server.interventions.active import ActiveIntervention
from server.interventions.meter import MeterBank
from server.interventions.plan import EMPTY_PLAN, BatchPlan, PlanRow
from tests.server.engine.interventions import WIDTH, switch, vector


class Stage:
    """Three identity blocks with hooks, and rows of one token each."""

    def __init__(self) -> None:
        self.blocks = nn.ModuleList(nn.Identity() for _ in range(3))
        self.meters = MeterBank("cpu")
        self.hooks = PlanHooks(DecoderStack(tuple(self.blocks), WIDTH), self.meters)

    def plan(self, settings, counts=None):
        rows, first = [], 0
        for i, used in enumerate(settings):
            count = counts[i] if counts else 1
            rows.append(PlanRow(i, first, 9, count, 4, [ActiveIntervention.begin(one, self.meters) for one in used]))
            first += count
        self.rows = rows
        return BatchPlan.build(rows, first, "cpu")

    def forward(self, plan, h_ND, passes=1):
        self.hooks.begin(plan)
        for block in self.blocks:
            for _ in range(passes):
                h_ND = block(h_ND[None])[0]
        failed = self.hooks.end()
        plan.commit(failed)
        return h_ND, failed

    def alone(self, used, h_ND):
        return self.forward(self.plan([used], [len(h_ND)]), h_ND)[0]


@pytest.fixture
def stage():
    return Stage()


def random_rows(count, seed=0):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


DISTINCT = {
    "32 mappers": [(switch(seed=seed),) for seed in range(32)],
    "256 vectors": [(vector(("add", "ablate")[seed % 2], seed=seed),) for seed in range(256)],
    "mixed shapes": [(switch(("autoencoder", "affine")[i % 2], i % 3 == 0, seed=i),) for i in range(32)],
    "several each": [(vector(seed=i), switch(seed=i), vector("ablate", (0, 1, 2), seed=i)) for i in range(32)],
    "half of the rows": [(switch(seed=i),) if i % 2 else () for i in range(32)],
}


@pytest.mark.parametrize("settings", DISTINCT.values(), ids=DISTINCT.keys())
@pytest.mark.parametrize("uneven", [False, True], ids=["decode", "chunks"])
def test_distinct_interventions_in_one_batch_equal_solo_runs(stage, settings, uneven):
    counts = [(1, 5, 20)[i % 3] if uneven else 1 for i in range(len(settings))]
    h_ND = random_rows(sum(counts))
    done, failed = stage.forward(stage.plan(settings, counts), h_ND)
    assert failed == {}
    rows = stage.rows
    for row, used in zip(rows, settings, strict=True):
        span = slice(row.first, row.first + row.count)
        torch.testing.assert_close(done[span], stage.alone(used, h_ND[span]), rtol=1e-5, atol=1e-5)
        assert torch.equal(done[span], h_ND[span]) == (used == ())
    assert all(a.generated_tokens == row.count for row in rows for a in row.interventions)


def test_a_plan_after_another_and_back_uses_its_own_mappers(stage):
    """Slots in the bank are given to the mappers of a plan when it begins, whichever plan was built last."""
    h_ND = random_rows(4)
    first = stage.plan([(switch(seed=seed),) for seed in range(4)])
    second = stage.plan([(switch(seed=10 + seed),) for seed in range(4)])
    expected = [stage.forward(plan, h_ND)[0] for plan in (first, second)]
    assert not torch.allclose(*expected)
    assert torch.equal(stage.forward(first, h_ND)[0], expected[0])
    assert torch.equal(stage.forward(second, h_ND)[0], expected[1])


def test_rows_without_an_intervention_are_bit_identical(stage):
    h_ND = random_rows(3)
    bad = vector(seed=1)
    bad.effects[Site(1)][0] = torch.nan
    for settings in ([(bad,), (), (switch(),)], [(switch(),), (), (switch(seed=5),)]):
        done, _ = stage.forward(stage.plan(settings), h_ND)
        assert torch.equal(done[1], h_ND[1])


def test_nan_of_a_neighbour_does_not_reach_its_group(stage):
    h_ND = random_rows(8)
    settings = [(switch(seed=seed),) for seed in range(4)] + [(vector(seed=seed),) for seed in range(4)]
    clean, _ = stage.forward(stage.plan(settings), h_ND)
    settings[1][0].effects[Site(1)].decoder_weight.fill_(torch.nan)
    settings[6][0].effects[Site(1)].fill_(torch.nan)
    spoilt, failed = Stage().forward(stage.plan(settings), h_ND)
    others = [0, 2, 3, 4, 5, 7]
    assert failed == {}
    assert torch.equal(spoilt[others], clean[others])
    assert spoilt[[1, 6]].isnan().all()


@pytest.mark.parametrize("position", range(4))
def test_one_mapper_that_raises_in_a_batched_product_fails_alone(stage, position):
    settings = [(switch(seed=seed),) for seed in range(4)]
    settings.append(settings[position])
    h_ND = random_rows(5)
    expected = [stage.alone(used, h_ND[[row]])[0] for row, used in enumerate(settings)]
    settings[position][0].effects[Site(1)].encoder_bias = nn.Parameter(torch.zeros(5), requires_grad=False)
    done, failed = stage.forward(stage.plan(settings), h_ND)
    assert set(failed) == {position, 4}
    for row in set(range(4)) - {position}:
        torch.testing.assert_close(done[row], expected[row])
    counted = [one.generated_tokens for row in stage.rows for one in row.interventions]
    assert counted == [int(row not in failed) for row in range(5)]


def test_vectors_of_a_wrong_width_fail_alone(stage):
    broken = vector(seed=3)
    broken.effects[Site(1)] = torch.ones(5)
    h_ND = random_rows(3)
    done, failed = stage.forward(stage.plan([(vector(),), (broken,), (vector("ablate"),)]), h_ND)
    assert set(failed) == {1}
    assert torch.equal(done[1], h_ND[1])
    assert torch.equal(done[0], stage.alone((vector(),), h_ND[:1])[0])


def test_a_failed_turn_does_not_stop_what_others_do_next(stage):
    broken = vector()
    broken.effects[Site(1)] = torch.ones(5)
    h_ND = random_rows(2)
    both = (vector(seed=1), switch())
    done, failed = stage.forward(stage.plan([(broken, switch()), both]), h_ND)
    assert set(failed) == {0}
    torch.testing.assert_close(done[1], stage.alone(both, h_ND[1:])[0])


def test_a_block_that_runs_twice_or_never_fails_its_rows(stage):
    h_ND = random_rows(2)
    assert set(stage.forward(stage.plan([(), (vector(),)]), h_ND, passes=2)[1]) == {1}
    plan = stage.plan([(vector(),), ()])
    stage.hooks.begin(plan)
    failed = stage.hooks.end()
    plan.commit(failed)
    assert set(failed) == {0}
    assert [one.generated_tokens for one in stage.rows[0].interventions] == [0]


def test_an_empty_plan_returns_the_very_tensor(stage):
    h_ND = random_rows(2)
    stage.hooks.begin(EMPTY_PLAN)
    for block in stage.blocks:
        assert block(h_ND) is h_ND
    assert stage.hooks.end() == {}
    stage.hooks.remove()
    assert not any(block._forward_hooks for block in stage.blocks)


def test_the_blocks_own_output_is_not_written_to(stage):
    h_ND = random_rows(3)
    before = h_ND.clone()
    stage.forward(stage.plan([(vector(),), (), (switch(),)]), h_ND)
    stage.forward(stage.plan([(vector(),), (vector(),), (switch(),)]), h_ND)
    assert torch.equal(h_ND, before)


def test_half_precision_streams_are_changed_in_float32(stage):
    h_ND = random_rows(4).bfloat16()
    settings = [(vector(seed=1),), (switch(),), (vector("ablate"),), ()]
    done, _ = stage.forward(stage.plan(settings), h_ND)
    exact, _ = stage.forward(stage.plan(settings), h_ND.float())
    assert done.dtype is torch.bfloat16
    assert torch.equal(done, exact.bfloat16())


def test_meters_see_every_round_and_overflow(stage):
    settings = [(vector(strength=2.0), vector(strength=-2.0)), (vector(strength=1e38, size=1e30),), ()]
    h_ND = random_rows(3)
    stage.forward(stage.plan(settings), h_ND)
    there, back = stage.rows[0].interventions
    assert stage.meters.overflowed() == {stage.rows[1].interventions[0].meter}
    assert there.end(stage.meters).mean_relative_change == pytest.approx(2.0 / float(h_ND[0].norm()), rel=1e-5)
    assert back.end(stage.meters).mean_relative_change > 0
