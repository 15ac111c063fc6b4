"""Mappers computed together give what each gives alone."""

import pytest
import torch

from mappers.mapper_config import MapperConfig
from mappers.modules import build_mapper
from mappers.stacked import MapperStack, stack_form

WIDTH = 12


def mapper(kind="autoencoder", residual=True, seed=0, hidden=None):
    made = build_mapper(MapperConfig(kind=kind, d_source=WIDTH, d_target=WIDTH, residual=residual, hidden=hidden))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return made.requires_grad_(False)


@pytest.mark.parametrize("kind", ["autoencoder", "affine"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_each_entry_goes_through_its_mapper(kind, residual, count):
    mappers = [mapper(kind, residual, seed) for seed in range(5)]
    stack = MapperStack()
    assert stack.places(mappers) == [0, 1, 2, 3, 4]
    x_MCS = torch.randn(5, count, WIDTH)
    torch.testing.assert_close(stack.forward(x_MCS), torch.stack([m(x) for m, x in zip(mappers, x_MCS, strict=True)]))


def test_a_mapper_keeps_its_place_while_it_is_wanted():
    mappers = [mapper(seed=seed) for seed in range(6)]
    stack = MapperStack()
    first = stack.places(mappers[:4])
    second = stack.places([mappers[3], mappers[5], mappers[1], mappers[0]])
    assert (second[0], second[2], second[3]) == (first[3], first[1], first[0])
    assert second[1] == first[2], "the place that is free is taken"
    assert stack.size == 4
    assert stack.places(mappers[:1]) == [0], "what is mostly left behind is given up"
    assert stack.size == 1


def test_only_mappers_of_one_form_are_stacked():
    assert stack_form(mapper()) == stack_form(mapper(seed=1))
    assert len({stack_form(m) for m in (mapper(), mapper("affine"), mapper(residual=False), mapper(hidden=5))}) == 4
    own = mapper()
    own.forward = lambda x: x
    assert stack_form(own) is None
