"""Stacked mappers compute what each computes alone, and a weight is copied once however the live set changes."""

import gc
import random

import pytest
import torch

from mappers.mapper_config import MapperConfig
from mappers.modules import AutoencoderMapper
from server.interventions.bank import Family, MapperBank, MapperStack, Use, family_of, power_of_two
from tests.server.engine.interventions import WIDTH, mapper


def uses_of(mappers, tokens):
    return [Use(one, (row,), count) for row, (one, count) in enumerate(zip(mappers, tokens, strict=True))]


def alone(uses, h_KD):
    pieces = h_KD.split([use.tokens for use in uses])
    return torch.cat([use.mapper(piece) for use, piece in zip(uses, pieces, strict=True)])


@pytest.mark.parametrize("kind", ["autoencoder", "affine", "low_rank"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("tokens", [(1,) * 32, (3, 1, 8, 2), (2, 2, 2)], ids=str)
def test_each_token_gets_what_its_mapper_alone_gives(kind, residual, tokens):
    uses = uses_of([mapper(kind, residual, seed) for seed in range(len(tokens))], tokens)
    h_KD = torch.randn(sum(tokens), WIDTH)
    torch.testing.assert_close(MapperBank().apply("here", uses, h_KD), alone(uses, h_KD))


def test_other_widths_than_the_stream():
    made = [AutoencoderMapper(MapperConfig(kind="autoencoder", d_source=8, d_target=5, hidden=3)) for _ in range(3)]
    for one in made:
        one.requires_grad_(False)
        for parameter in one.parameters():
            parameter.normal_()
    uses, h_KS = uses_of(made, (1, 2, 1)), torch.randn(4, 8)
    torch.testing.assert_close(MapperBank().apply("here", uses, h_KS), alone(uses, h_KS))


def test_a_changing_live_set_always_gets_its_own_mappers():
    """Mappers come, go, return and are freed; slots move and stacks grow and shrink meanwhile."""
    rng, bank = random.Random(0), MapperBank()
    pool = [mapper(seed=seed) for seed in range(24)]
    for step in range(60):
        if step % 7 == 0:
            pool[rng.randrange(24)] = mapper(seed=100 + step)
            gc.collect()
        chosen = rng.sample(pool, rng.randrange(2, 24))
        uses = uses_of(chosen, [rng.randrange(1, 4) for _ in chosen])
        h_KD = torch.randn(sum(use.tokens for use in uses), WIDTH)
        bank.begin_plan()
        for _ in range(2):
            torch.testing.assert_close(bank.apply("here", uses, h_KD), alone(uses, h_KD))


def test_one_that_joins_is_copied_alone():
    stack, made = MapperStack(family_of(mapper()), "cpu"), [mapper(seed=seed) for seed in range(5)]
    slots = stack.place(made[:4])
    assert stack.place(made[:4]) == slots
    made[1].encoder_weight.fill_(7.0)  # would be seen if it were copied again
    assert stack.place([made[0], made[1], made[2], made[4]]) == slots, "the one that left makes room"
    h_KD = torch.randn(4, WIDTH)
    done = stack.apply(h_KD[:, None])[:, 0]
    torch.testing.assert_close(done[3], made[4](h_KD[3]))
    assert not torch.allclose(done[1], made[1](h_KD[1]))


def test_a_stack_of_fixed_capacity_never_moves():
    made = [mapper(seed=seed) for seed in range(7)]
    stack = MapperStack(family_of(made[0]), "cpu", capacity=4)
    places = [weights.data_ptr() for weights in stack._weights]
    editions = [stack.edition]
    for chosen in (made[:1], made[:4], made[3:7], made[3:5], made[3:5]):
        slots = stack.place(chosen)
        editions.append(stack.edition)
        h_KD = torch.randn(4, WIDTH)
        done = stack.apply(h_KD[:, None])[:, 0]
        for one, slot in zip(chosen, slots, strict=True):
            torch.testing.assert_close(done[slot], one(h_KD[slot]))
    assert [weights.data_ptr() for weights in stack._weights] == places
    assert editions == [0, 1, 2, 3, 3, 3], "only where a slot gets another mapper"


def test_few_of_many_do_not_pay_for_all():
    stack, made = MapperStack(family_of(mapper()), "cpu"), [mapper(seed=seed) for seed in range(32)]
    stack.place(made)
    assert max(stack.place(made[-3:])) < 6


@pytest.mark.parametrize(("count", "room"), [(1, 1), (2, 2), (3, 4), (4, 4), (17, 32)])
def test_powers_of_two(count, room):
    assert power_of_two(count) == room


def test_nan_in_one_mapper_or_token_stays_there():
    def run(spoil):
        made = [mapper(seed=seed) for seed in range(4)]
        h_KD = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
        spoil(made, h_KD)
        return MapperBank().apply("here", uses_of(made, (1, 2, 2, 1)), h_KD)

    clean = run(lambda made, h: None)
    bad_mapper = run(lambda made, h: made[1].decoder_weight.fill_(torch.nan))
    bad_token = run(lambda made, h: h[0].fill_(torch.nan))
    assert torch.equal(bad_mapper[[0, 3, 4, 5]], clean[[0, 3, 4, 5]])
    assert bad_mapper[1:3].isnan().all()
    assert torch.equal(bad_token[1:], clean[1:])
    assert bad_token[0].isnan().all()


def test_a_stack_that_is_not_used_for_long_gives_its_memory_back():
    bank, uses = MapperBank(), uses_of([mapper(seed=seed) for seed in range(2)], (1, 1))
    for place in ("here", "there"):
        bank.apply(place, uses, torch.randn(2, WIDTH))
    for _ in range(300):
        bank.begin_plan()
        bank.apply("here", uses, torch.randn(2, WIDTH))
    assert set(bank._stacks) == {"here"}


def test_families_are_those_that_can_be_stacked():
    class Own(AutoencoderMapper):
        pass

    assert family_of(mapper()) == Family(AutoencoderMapper, True, ((WIDTH, WIDTH), (WIDTH, WIDTH)))
    config = MapperConfig(kind="autoencoder", d_source=WIDTH, d_target=WIDTH, residual=True)
    assert family_of(mapper(seed=1)) == family_of(mapper(seed=2))
    assert family_of(mapper(residual=False)) != family_of(mapper())
    assert len({family_of(mapper(kind)) for kind in ("affine", "low_rank", "autoencoder")}) == 3
    assert family_of(mapper("ridge")) == family_of(mapper("procrustes")) == family_of(mapper("affine"))
    assert family_of(Own(config)) != family_of(mapper())
