import math

import pytest
import torch

from mappers.errors import DataError
from mappers.similarity import similarities
from mappers.sites import Site

A, B = Site(0), Site(1)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of(x_NS: torch.Tensor, y_ND: torch.Tensor, **options):
    return similarities({A: x_NS}, {B: y_ND}, **options)[A, B]


def test_a_rotation_a_shift_and_a_scale_change_nothing():
    x_NS = draw(1, 400, 6)
    rotation_SS = torch.linalg.qr(draw(2, 6, 6))[0]
    found = of(x_NS, 3 * x_NS @ rotation_SS + 7)
    assert (found.cka, found.svcca) == (pytest.approx(1), pytest.approx(1))


def test_any_linear_map_keeps_svcca_and_lowers_cka():
    x_NS = draw(1, 400, 6)
    found = of(x_NS, x_NS @ torch.diag(torch.tensor([1.0, 1, 1, 1, 9, 9])), variance=0.999999)
    assert found.svcca == pytest.approx(1)
    assert found.cka < 0.8


def test_independent_activations_are_not_alike():
    found = of(draw(1, 4000, 5), draw(2, 4000, 8))
    assert found.cka < 0.01
    assert found.svcca < 0.1


def test_cka_is_the_formula_of_the_paper():
    x_NS, y_ND = draw(1, 50, 3).double(), draw(2, 50, 4).double()
    h_NN = torch.eye(50, dtype=torch.float64) - 1 / 50
    k_NN, l_NN = h_NN @ x_NS @ x_NS.T @ h_NN, h_NN @ y_ND @ y_ND.T @ h_NN
    hsic = float((k_NN * l_NN).sum()) / math.sqrt(float((k_NN * k_NN).sum()) * float((l_NN * l_NN).sum()))
    assert of(x_NS, y_ND).cka == pytest.approx(hsic)


@pytest.mark.parametrize("x_NS", [torch.ones(9, 3), torch.zeros(1, 3), torch.full((9, 3), float("nan"))])
def test_what_cannot_be_compared_is_refused(x_NS):
    with pytest.raises(DataError, match="at least two tokens"):
        of(x_NS, draw(1, len(x_NS), 3))
