"""Each operation against its formula, a row at a time in float64."""

import pytest
import torch

from server.interventions import operations

K, D = 5, 16


@pytest.fixture
def h():
    return torch.randn(K, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def v():
    return 3 * torch.randn(K, D, generator=torch.Generator().manual_seed(1))


STRENGTH = torch.tensor([0.0, 0.5, 1.0, 2.0, -1.5])


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_add(h, v):
    close(operations.add(h, v, STRENGTH), h.double() + STRENGTH[:, None].double() * v.double())


def test_ablate(h, v):
    unit = v.double() / v.double().norm(dim=-1, keepdim=True)
    component = (h.double() * unit).sum(-1, keepdim=True)
    close(
        operations.ablate(h, operations.unit(v), STRENGTH), h.double() - STRENGTH[:, None].double() * component * unit
    )


def test_ablation_removes_the_direction_and_nothing_else(h, v):
    done = operations.ablate(h, operations.unit(v), torch.ones(K))
    assert (done * v).sum(-1).abs().max() < 1e-4
    other = torch.randn(K, D)
    other -= (other * v).sum(-1, keepdim=True) / v.square().sum(-1, keepdim=True) * v
    torch.testing.assert_close((done * other).sum(-1), (h * other).sum(-1), rtol=1e-4, atol=1e-4)


def test_a_unit_direction_has_length_one_whatever_the_vector(v):
    for size in (1e-17, 1.0, 1e17):
        close(operations.unit(size * v), v.double() / v.double().norm(dim=-1, keepdim=True))


def test_clamp_brings_the_projection_into_the_interval(h, v):
    low, high = torch.full((K,), -0.1), torch.full((K,), 0.2)
    unit = operations.unit(v)
    before = (h * unit).sum(-1)
    done = operations.clamp(h, unit, torch.ones(K), low, high)
    torch.testing.assert_close((done * unit).sum(-1), before.clamp(-0.1, 0.2), rtol=1e-5, atol=1e-5)
    half = operations.clamp(h, unit, torch.full((K,), 0.5), low, high)
    torch.testing.assert_close((half * unit).sum(-1), (before + before.clamp(-0.1, 0.2)) / 2, rtol=1e-5, atol=1e-5)


def test_clamp_leaves_a_projection_inside_alone(h, v):
    unit = operations.unit(v)
    wide = operations.clamp(h, unit, torch.ones(K), torch.full((K,), -1e3), torch.full((K,), 1e3))
    assert torch.equal(wide, h)
    assert torch.equal(operations.clamp(h, unit, torch.ones(K), torch.full((K,), -torch.inf), torch.full((K,), 1e3)), h)


def test_switch(h):
    def mapper(x):
        return x.square() - 1

    s = STRENGTH[:, None].double()
    close(operations.switch(h, mapper, STRENGTH), (1 - s) * h.double() + s * (h.double().square() - 1))
    torch.testing.assert_close(operations.switch(h, mapper, torch.ones(K)), mapper(h))


@pytest.mark.parametrize("name", ["add", "ablate", "clamp", "switch"])
def test_a_row_of_nan_stays_its_own(name, h, v):
    """Rows of one group belong to different requests."""

    def run(h):
        bounds = (torch.full((K,), -0.1), torch.full((K,), 0.1)) if name == "clamp" else ()
        return getattr(operations, name)(h, torch.tanh if name == "switch" else operations.unit(v), STRENGTH, *bounds)

    spoilt = h.clone()
    spoilt[2] = torch.nan
    others = [0, 1, 3, 4]
    assert torch.equal(run(spoilt)[others], run(h)[others])
    assert run(spoilt)[2].isnan().all()


def test_an_operation_by_its_name(h, v):
    unit, low, high = operations.unit(v), torch.full((K,), -0.1), torch.full((K,), 0.1)
    assert torch.equal(operations.steer("add", h, v, STRENGTH), operations.add(h, v, STRENGTH))
    assert torch.equal(operations.steer("ablate", h, unit, STRENGTH), operations.ablate(h, unit, STRENGTH))
    clamped = operations.clamp(h, unit, STRENGTH, low, high)
    assert torch.equal(operations.steer("clamp", h, unit, STRENGTH, low, high), clamped)
