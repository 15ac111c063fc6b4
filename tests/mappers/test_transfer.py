"""Switches and probes behind affine mappers are exactly what the composition is."""

from __future__ import annotations

import pytest
import torch

from mappers.errors import DataError
from mappers.modules import Mapper, MapperConfig, build_mapper
from mappers.transfer import transfer_probe, transfer_switch

SOURCE, TARGET = 5, 7


def drawn(seed: int, kind: str, d_source: int, d_target: int, *, residual: bool = False) -> Mapper:
    generator = torch.Generator().manual_seed(seed)
    hidden = 4 if kind == "autoencoder" else None
    config = MapperConfig(kind=kind, d_source=d_source, d_target=d_target, residual=residual, hidden=hidden)
    mapper = build_mapper(config)
    with torch.no_grad():
        for parameter in mapper.parameters():
            parameter.normal_(generator=generator)
    return mapper


@pytest.fixture
def into() -> Mapper:
    return drawn(1, "ridge", TARGET, SOURCE)


@pytest.fixture
def back() -> Mapper:
    return drawn(2, "affine", SOURCE, TARGET)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", ["ridge", "affine", "autoencoder"])
def test_a_switch_does_in_the_target_what_it_does_in_the_source(into, back, kind, residual):
    switch = drawn(3, kind, SOURCE, SOURCE, residual=residual)
    carried = transfer_switch(switch, into, back)
    h = torch.randn(50, TARGET, generator=torch.Generator().manual_seed(4))
    there = into(h)
    assert torch.allclose(carried(h), h + back(switch(there)) - back(there), atol=1e-4, rtol=1e-4)
    assert carried.config.residual
    assert carried.config.kind == ("autoencoder" if kind == "autoencoder" else "affine")
    assert not any(parameter.requires_grad for parameter in carried.parameters())


@pytest.mark.parametrize("kind", ["ridge", "autoencoder"])
def test_the_change_can_be_carried_more_than_once(into, back, kind):
    switch = drawn(3, kind, SOURCE, SOURCE)
    h = torch.randn(9, TARGET, generator=torch.Generator().manual_seed(4))
    once, twice = (transfer_switch(switch, into, back, strength=strength)(h) - h for strength in (1.0, 2.0))
    assert torch.allclose(twice, 2 * once, atol=1e-4, rtol=1e-4)


def test_the_hidden_width_grows_only_where_the_input_has_to_be_taken_away(into, back):
    widths = [
        transfer_switch(drawn(3, "autoencoder", SOURCE, SOURCE, residual=residual), into, back).config.hidden_width
        for residual in (True, False)
    ]
    assert widths == [4, 4 + 2 * SOURCE]


def test_a_switch_that_changes_nothing_is_carried_to_one_that_changes_nothing(into, back):
    identity = build_mapper(MapperConfig(kind="autoencoder", d_source=SOURCE, d_target=SOURCE, residual=True))
    h = torch.randn(9, TARGET)
    assert torch.equal(transfer_switch(identity, into, back)(h), h)


@pytest.mark.parametrize("place", [0, 1])
def test_mappers_have_to_be_affine(into, back, place):
    mappers = [into, back]
    widths = (TARGET, SOURCE) if place == 0 else (SOURCE, TARGET)
    mappers[place] = drawn(5, "autoencoder", *widths)
    with pytest.raises(DataError, match="affine mapper is needed"):
        transfer_switch(drawn(3, "ridge", SOURCE, SOURCE), *mappers)


@pytest.mark.parametrize("residual", [False, True])
def test_a_probe_reads_the_target_as_it_read_the_mapped_source(residual):
    width = TARGET if residual else SOURCE
    mapper = drawn(6, "affine", TARGET, width, residual=residual)
    generator = torch.Generator().manual_seed(7)
    weight, h = torch.randn(width, generator=generator), torch.randn(20, TARGET, generator=generator)
    carried, bias = transfer_probe(mapper, weight, 0.3)
    assert carried.shape == (TARGET,)
    assert torch.allclose(h @ carried + bias, mapper(h) @ weight + 0.3, atol=1e-4)
