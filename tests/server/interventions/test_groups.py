"""One group of token rows: its operation, and what is left to try when a batched product raised."""

import pytest
import torch

from mappers.sites import Site
from server.interventions import operations
from server.interventions.bank import MapperBank, Use
from server.interventions.groups import Group
from tests.server.engine.interventions import WIDTH, mapper, vector

K = 4


@pytest.fixture
def h():
    return torch.randn(K, WIDTH, generator=torch.Generator().manual_seed(0))


def test_one_direction_serves_all_tokens(h):
    v_1D = vector().effects[Site(1)][None]
    strength_K = torch.tensor([0.5, 1.0, -1.0, 2.0])
    for operation in ("add", "ablate"):
        shared = Group(operation, (0,), slice(0, K), strength_K, v_1D).compute(h, MapperBank())
        spread = Group(operation, (0,), slice(0, K), strength_K, v_1D.expand(K, -1)).compute(h, MapperBank())
        assert torch.equal(shared, spread)


def test_bounds_reach_the_clamp(h):
    unit_1D = operations.unit(vector().effects[Site(1)][None])
    low_K, high_K = torch.full((K,), 0.25), torch.full((K,), 0.5)
    group = Group("clamp", (0,), slice(0, K), torch.ones(K), unit_1D, low_K, high_K)
    projection_K = (group.compute(h, MapperBank()) * unit_1D).sum(-1)
    torch.testing.assert_close(projection_K, (h * unit_1D).sum(-1).clamp(0.25, 0.5))


def test_parts_compute_what_the_group_computes(h):
    uses = (Use(mapper(seed=1), (0, 2), 3), Use(mapper(seed=2), (1,), 1))
    group = Group("switch", (0, 2, 1), slice(5, 5 + K), torch.tensor([0.5, 1.0, 2.0, -1.0]), uses=uses, place="here")
    parts, bank = group.parts(), MapperBank()
    assert [part.rows for part in parts] == [(0, 2), (1,)]
    torch.testing.assert_close(torch.cat([part.compute(h[part.span], bank) for part in parts]), group.compute(h, bank))
