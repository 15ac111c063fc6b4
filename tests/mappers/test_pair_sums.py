from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mappers.errors import TrainingError
from mappers.evaluation import UnexplainedVariance
from mappers.modules import AffineMapper
from mappers.pair_sums import PairSums


def fit(x: Tensor, y: Tensor, *, ridge: float, residual: bool = False, parts: int = 7) -> AffineMapper:
    sums = PairSums(x.shape[1], y.shape[1])
    for chunk in torch.arange(len(x)).chunk(parts):
        sums.add(x[chunk], y[chunk])
    return sums.ridge(ridge=ridge, residual=residual)


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 8, generator=generator) + 100.0
    w, noise = torch.randn(8, 5, generator=generator), torch.randn(500, 5, generator=generator)
    return x, x @ w + 3.0 + 0.1 * noise


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.01, 1.0])
def test_streamed_sums_give_the_solution_of_all_data_at_once(
    data: tuple[Tensor, Tensor], ridge: float, residual: bool
) -> None:
    x, y = data[0].double(), data[0].double().flip(1) if residual else data[1].double()
    centered, goal = x - x.mean(0), (y - x if residual else y) - (y - x if residual else y).mean(0)
    penalty = ridge * centered.square().sum(0).mean() * torch.eye(8, dtype=torch.float64)
    expected = torch.linalg.solve(centered.T @ centered + penalty, centered.T @ goal).T
    mapper = fit(x.float(), y.float(), ridge=ridge, residual=residual)
    assert torch.allclose(mapper.weight.double(), expected, atol=1e-4)
    assert torch.allclose(mapper(x.float()).mean(0).double(), y.mean(0), atol=1e-2)
    assert mapper.config.kind == "ridge"
    assert mapper.config.residual is residual


def test_the_number_of_batches_does_not_matter(data: tuple[Tensor, Tensor]) -> None:
    one, many = fit(*data, ridge=0.1, parts=1), fit(*data, ridge=0.1, parts=100)
    assert torch.allclose(one.weight, many.weight, atol=1e-6)
    assert torch.allclose(one.bias, many.bias, atol=1e-4)


def test_strong_regularisation_ends_at_the_mean_or_at_the_identity(data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    assert torch.allclose(fit(x, y, ridge=1e9)(x), y.mean(0).expand_as(y), atol=1e-2)
    shifted = x + 2.0
    assert torch.allclose(fit(x, shifted, ridge=1e9, residual=True)(x), shifted, atol=1e-2)


def test_dependent_features_are_solved_all_the_same(data: tuple[Tensor, Tensor]) -> None:
    x, y = torch.cat([data[0], data[0][:, :3]], dim=1), data[1]
    mapper = fit(x, y, ridge=0.0)
    unexplained = UnexplainedVariance()
    unexplained.add(mapper(x), y)
    assert torch.isfinite(mapper.weight).all()
    assert unexplained.value() < 0.01


def test_constant_activations_give_the_mean() -> None:
    mapper = fit(torch.ones(10, 3), torch.full((10, 2), 5.0), ridge=0.1)
    assert torch.allclose(mapper(torch.ones(1, 3)), torch.full((1, 2), 5.0))


def test_no_tokens_and_non_finite_values_are_refused() -> None:
    sums = PairSums(3, 2)
    sums.add(torch.zeros(0, 3), torch.zeros(0, 2))
    with pytest.raises(TrainingError, match="no token pairs"):
        sums.ridge(ridge=1.0)
    with pytest.raises(TrainingError, match="not finite"):
        sums.add(torch.full((1, 3), float("inf")), torch.zeros(1, 2))
