"""The static plan against the eager one; its state changes without a new structure, and without a new trace."""

import random

import pytest
import torch
from torch import nn

from mappers.modules import AutoencoderMapper
from mappers.sites import Site
from server.interventions.active import ActiveIntervention
from server.interventions.draft import PlanRow
from server.interventions.meter import MeterBank
from server.interventions.plan import BatchPlan
from server.interventions.static import StaticPlan
from server.interventions.structure import NotStatic, Structure
from tests.server.engine.interventions import WIDTH, switch, vector
from tests.server.engine.test_hooks import Stage

ROWS = 12
SITES = (Site(0), Site(1), Site(2))


def rows_of(settings, meters, places=None):
    """One decode row for each of ``settings``, at its place in the batch."""
    return [
        PlanRow(i, place, 9, 1, 4, [ActiveIntervention.begin(one, meters) for one in used])
        for i, (place, used) in enumerate(zip(places or range(len(settings)), settings, strict=True))
    ]


def made_for(settings, dtype=None, places=None):
    meters = MeterBank("cpu")
    rows = rows_of(settings, meters, places)
    plan = StaticPlan(Structure.of(rows), ROWS, WIDTH, "cpu", meters)
    plan.fill(rows)
    return plan, rows, meters


def forward(plan, h_RD):
    for site in SITES:
        h_RD = plan.apply(site, h_RD)
    return h_RD


def eagerly(settings, h_ND, places=None):
    """Output and meter sums of the eager hooks; ``places`` as in :func:`rows_of`."""
    stage = Stage()
    rows = rows_of(settings, stage.meters, places)
    out, failed = stage.forward(BatchPlan.build(rows, len(h_ND), "cpu"), h_ND)
    assert failed == {}
    return out, [one.end(stage.meters) for row in rows for one in row.interventions]


def random_settings(rng, rows=ROWS):
    shared = [switch(seed=seed, layers=(0, 1), strength=0.7) for seed in range(3)]
    settings = []
    for _ in range(rows):
        used = []
        for _ in range(rng.randrange(4)):
            layers = tuple(sorted(rng.sample(range(3), rng.randrange(1, 4))))
            strength = rng.choice([0.0, 0.5, 1.0, -1.5])
            kind = rng.choice(["add", "ablate", "clamp", "switch", "affine", "shared"])
            if kind == "shared":
                used.append(rng.choice(shared))
            elif kind in ("switch", "affine"):
                form = "autoencoder" if kind == "switch" else kind
                used.append(switch(form, rng.random() < 0.5, layers, strength, rng.randrange(5)))
            else:
                bounds = {"minimum": -0.1, "maximum": 0.1} if kind == "clamp" else {}
                used.append(vector(kind, layers, strength, rng.randrange(5), **bounds))
        settings.append(tuple(used))
    return settings


def random_rows(seed=0):
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_eager_plan(seed):
    rng = random.Random(seed)
    settings, places = random_settings(rng, rows=rng.randrange(1, ROWS + 1)), None
    places = rng.sample(range(ROWS), len(settings))
    plan, rows, meters = made_for(settings, places=places)
    expected, receipts = eagerly(settings, random_rows(seed), places)
    before = random_rows(seed)
    found = forward(plan, before)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(before, random_rows(seed)), "the input stays as it is"
    plan.commit(())
    for one, receipt in zip((a for row in rows for a in row.interventions), receipts, strict=True):
        mine = one.end(meters)
        assert mine.mean_relative_change == pytest.approx(receipt.mean_relative_change, rel=1e-4, abs=1e-7)
        assert (mine.prompt_tokens, mine.generated_tokens) == (receipt.prompt_tokens, receipt.generated_tokens)


@pytest.mark.parametrize("residual", [False, True])
def test_distinct_factored_mappers_equal_the_eager_plan(residual):
    settings = [(switch("low_rank", residual, (0, 2), 0.5, seed),) for seed in range(4)]
    plan, *_ = made_for(settings)
    expected, _ = eagerly(settings, random_rows())
    torch.testing.assert_close(forward(plan, random_rows()), expected, rtol=1e-5, atol=1e-6)


def test_directions_give_the_very_bits_of_the_eager_plan():
    settings = [(vector(kind, (0, 1, 2), seed=i),) for i, kind in enumerate(["add", "ablate"] * 6)]
    plan, _, _ = made_for(settings)
    assert torch.equal(forward(plan, random_rows()), eagerly(settings, random_rows())[0])


def test_half_precision_as_the_eager_plan():
    settings = [(vector(seed=i), vector("ablate", seed=i)) if i % 2 else () for i in range(ROWS)]
    plan, _, _ = made_for(settings)
    h_RD = random_rows().bfloat16()
    assert torch.equal(forward(plan, h_RD), eagerly(settings, h_RD)[0])


def test_untouched_rows_keep_their_bits_beside_nan():
    bad_vector, bad_mapper = vector(seed=1), switch(seed=1)
    bad_vector.effects[Site(1)][0] = torch.nan
    bad_mapper.effects[Site(1)].decoder_weight.fill_(torch.nan)
    settings = [(bad_vector,), (), (bad_mapper,), (switch(seed=2),), (vector(seed=3),)]
    clean = [(vector(seed=1),), (), (switch(seed=1),), *settings[3:]]
    h_RD = random_rows()
    h_RD[ROWS - 1] = torch.nan
    plan, rows, meters = made_for(settings)
    found = forward(plan, h_RD)
    healthy = forward(made_for(clean)[0], h_RD)
    assert torch.equal(found[[1, 3, 4]], healthy[[1, 3, 4]])
    assert torch.equal(found[[1, *range(5, ROWS - 1)]], h_RD[[1, *range(5, ROWS - 1)]])
    assert found[[0, 2]].isnan().any(-1).all()
    assert meters.overflowed() == {rows[0].interventions[0].meter, rows[2].interventions[0].meter}


def test_state_changes_need_no_new_structure():
    """Other rows, strengths, directions, mappers and bounds, in turn, in the same buffers."""
    meters = MeterBank("cpu", places=1024)
    widest = [(switch(seed=i), vector(seed=i), vector("clamp", seed=i, minimum=0.0)) for i in range(ROWS)]
    plan = StaticPlan(Structure.of(rows_of(widest, meters)), ROWS, WIDTH, "cpu", meters)
    buffers = [plan._settings_S3R.data_ptr(), plan._places_S2R.data_ptr()]
    rng = random.Random(0)
    for turn in range(12):
        settings = []
        for i in range(ROWS):
            seed, strength = rng.randrange(100), rng.choice([0.0, 0.3, 1.0])
            low = rng.choice([-0.1, 0.1])
            used = (
                switch(seed=seed, strength=0.5 + strength),
                vector(seed=seed, strength=1.0 + strength),
                vector("clamp", seed=seed, minimum=low, strength=strength),
            )
            settings.append(used[: rng.randrange(4)] if i else used)
        places = rng.sample(range(ROWS), ROWS)
        plan.fill(rows_of(settings, meters, places))
        h_RD = random_rows(turn)
        torch.testing.assert_close(forward(plan, h_RD), eagerly(settings, h_RD, places)[0], rtol=1e-5, atol=1e-6)
    assert [plan._settings_S3R.data_ptr(), plan._places_S2R.data_ptr()] == buffers


def test_the_key_does_not_depend_on_data():
    meters = MeterBank("cpu")

    def key(*settings):
        return Structure.of(rows_of(settings, meters))

    one = key((switch(seed=1),), (vector(seed=1),), ())
    assert one == key((vector(seed=5, strength=0.1),), (switch(seed=7, strength=0.2),), (vector(seed=6),))
    assert hash(one) == hash(key((switch(seed=1),), (vector(seed=1),), ()))
    assert one != key((switch(seed=1),), (vector("ablate", seed=1),))
    assert one != key((switch("affine", seed=1),), (vector(seed=1),))
    assert one != key((switch(seed=1, layers=(2,)),), (vector(seed=1),))
    assert one != key((switch(seed=1), vector(seed=1)))
    assert one != key((switch(seed=1),), (switch(seed=2),), (vector(seed=1),))
    three, four = (key(*((switch(seed=seed),) for seed in range(count))) for count in (3, 4))
    assert three == four
    assert key() == key((), (vector(strength=0.0),))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ([(vector("ablate"),)], "ablate"),
        ([(vector(layers=(2,)),)], "resid_post.2"),
        ([(vector(), vector())], "turn 1"),
        ([(switch(seed=seed),) for seed in range(3)], "switch"),
        ([(switch(seed=1),)] * 3 + [(switch(seed=2),)], "switch"),
        ([(switch("affine"),)], "switch"),
    ],
)
def test_what_a_plan_has_no_room_for_is_refused(settings, says):
    plan, _, meters = made_for([(vector(),), (switch(seed=1),), (switch(seed=2),)])
    with pytest.raises(NotStatic, match=says):
        plan.fill(rows_of(settings, meters))


def test_a_prompt_a_row_too_many_and_moved_meters_are_refused():
    plan, rows, meters = made_for([(vector(),)])
    with pytest.raises(NotStatic, match="one token"):
        plan.fill([PlanRow(0, 0, 0, 2, 4, ())])
    with pytest.raises(NotStatic, match=f"{ROWS} rows"):
        plan.fill([PlanRow(0, ROWS, 9, 1, 4, ())])
    while meters.sums_N is plan._sums_N:
        meters.open()
    with pytest.raises(NotStatic, match="meters"):
        plan.fill(rows)


def test_what_cannot_be_held_in_buffers_is_refused():
    class Own(AutoencoderMapper):
        pass

    narrow, own, broken = vector(), switch(), switch(seed=3)
    narrow.effects[Site(1)] = torch.ones(5)
    own.effects[Site(1)] = Own(own.effects[Site(1)].config)
    with pytest.raises(NotStatic, match="wide"):
        made_for([(narrow,)])
    with pytest.raises(NotStatic, match="class"):
        made_for([(own,)])
    broken.effects[Site(1)].encoder_bias = nn.Parameter(torch.zeros(5), requires_grad=False)
    with pytest.raises(NotStatic, match="shape"):
        made_for([(switch(),), (broken,)])


def test_before_it_is_filled_it_changes_and_measures_nothing():
    """A capture runs the program before anybody is planned."""
    meters = MeterBank("cpu")
    rows = rows_of([(switch(seed=1), vector()), (switch(seed=2),), (switch(),)], meters)
    plan = StaticPlan(Structure.of(rows), ROWS, WIDTH, "cpu", meters)
    h_RD = random_rows()
    assert torch.equal(forward(plan, h_RD), h_RD)
    assert not meters.sums_N.any()
    plan.fill(rows)
    assert not torch.equal(forward(plan, h_RD), h_RD)
    plan.fill([])
    assert torch.equal(forward(plan, h_RD), h_RD)


def test_plans_share_the_weights_of_mappers_and_notice_when_they_moved():
    meters, stacks = MeterBank("cpu"), {}
    settings = [(switch(seed=seed),) for seed in range(4)]
    rows = rows_of(settings, meters)
    few, many = (StaticPlan(Structure.of(rows), count, WIDTH, "cpu", meters, stacks) for count in (4, ROWS))
    assert len(stacks) == 1
    h_RD = random_rows()
    expected = eagerly(settings, h_RD[:4])[0]
    for plan, size in ((few, 4), (many, ROWS), (few, 4)):
        plan.fill(rows)
        plan.begin()
        torch.testing.assert_close(forward(plan, h_RD[:size])[:4], expected)
    many.begin()
    many.fill(rows_of([(switch(seed=9 + seed),) for seed in range(4)], meters))
    with pytest.raises(RuntimeError, match="fill it again"):
        few.begin()
    few.fill(rows)
    few.begin()
    torch.testing.assert_close(forward(few, h_RD[:4]), expected)


def test_counts_on_the_device_which_sites_ran():
    plan, rows, _ = made_for([(vector(layers=(0, 2)),), (), (switch(layers=(2,)),)])
    plan.begin()
    forward(plan, random_rows())
    assert plan.unfired() == ()
    plan.begin()
    plan.apply(Site(0), random_rows())
    assert plan.unfired() == (Site(2),)
    assert plan.rows_at(Site(2)) == {0, 2}
    forward(plan, random_rows())
    assert plan.unfired() == (Site(0),), "twice is not once"
    plan.commit(failed={0})
    assert [one.generated_tokens for row in rows for one in row.interventions] == [0, 1]


def test_a_compiled_forward_is_traced_once_whatever_the_state():
    """Without a graph break, so it can be captured; the state is in the buffers, so another one needs no new trace."""
    traces = []

    def backend(graph, _inputs):
        traces.append(graph)
        return graph.forward

    used = (switch(), vector("clamp", minimum=0.0))
    plan, _, meters = made_for([used] * (ROWS - 1) + [(switch(seed=50),)])
    torch._dynamo.reset()
    compiled = torch.compile(lambda h_RD: forward(plan, h_RD), fullgraph=True, dynamic=False, backend=backend)
    for seed in range(4):
        used = (switch(seed=seed, strength=0.5), vector("clamp", seed=seed, minimum=0.2))
        settings = [used if (i + seed) % 3 == 0 else () for i in range(ROWS - 1)] + [(switch(seed=50),)]
        plan.fill(rows_of(settings, meters))
        plan.begin()
        found = compiled(random_rows(seed))
        torch.testing.assert_close(found, eagerly(settings, random_rows(seed))[0], rtol=1e-5, atol=1e-6)
        assert plan.unfired() == ()
    assert len(traces) == 1
