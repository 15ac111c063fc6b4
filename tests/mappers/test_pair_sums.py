from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mappers.errors import TrainingError
from mappers.evaluation import UnexplainedVariance
from mappers.modules import AffineMapper, LowRankMapper
from mappers.pair_sums import PairSums


def summed(x: Tensor, y: Tensor, parts: int = 7) -> PairSums:
    sums = PairSums(x.shape[1], y.shape[1])
    for chunk in torch.arange(len(x)).chunk(parts):
        sums.add(x[chunk], y[chunk])
    return sums


def fit(x: Tensor, y: Tensor, *, ridge: float, residual: bool = False, parts: int = 7) -> AffineMapper:
    mapper = summed(x, y, parts).ridge(ridge=ridge, residual=residual)
    assert isinstance(mapper, AffineMapper)
    return mapper


def orthonormal(rows: int, columns: int) -> Tensor:
    """A matrix with orthonormal rows or columns, whichever are fewer."""
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    q = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=generator))[0]
    return q if rows >= columns else q.T


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


def test_sums_may_grow_after_a_map_was_made_of_them(data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    sums = summed(x[:200], y[:200])
    sums.ridge(ridge=0.1)
    sums.add(x[200:], y[200:])
    assert torch.allclose(sums.ridge(ridge=0.1)(x), fit(x, y, ridge=0.1)(x), atol=1e-4)


@pytest.mark.parametrize("widths", [(8, 8), (8, 5), (5, 8)], ids=str)
def test_procrustes_finds_a_rotation_with_shift_and_scale(widths: tuple[int, int]) -> None:
    d_source, d_target = widths
    q_SD = orthonormal(*widths)
    x = torch.randn(400, d_source, generator=torch.Generator().manual_seed(1)) + 50.0
    if d_source > d_target:  # what lies outside the rotated plane would be an error that no such map avoids
        x = 50.0 + (x - 50.0) @ q_SD @ q_SD.T
    y = 3.0 * x @ q_SD - 7.0
    mapper = summed(x, y).procrustes()
    assert torch.allclose(mapper(x), y, atol=1e-3)
    unscaled = summed(x, y).procrustes(scale=False)
    assert isinstance(unscaled, AffineMapper)
    gram = unscaled.weight @ unscaled.weight.T if d_source >= d_target else unscaled.weight.T @ unscaled.weight
    assert torch.allclose(gram, torch.eye(min(widths)), atol=1e-5)
    assert torch.allclose(unscaled(x).mean(0), y.mean(0), atol=1e-3)


@pytest.mark.parametrize("shape", [(9, 9), (9, 4), (4, 9)], ids=str)
def test_the_orthogonal_factor_is_that_of_the_singular_vectors(shape: tuple[int, int]) -> None:
    x = torch.randn(300, shape[0], generator=torch.Generator().manual_seed(2)) * torch.logspace(0, 3, shape[0])
    y = x[:, :1] + torch.randn(300, shape[1], generator=torch.Generator().manual_seed(3))
    cross = (x - x.mean(0)).double().T @ (y - y.mean(0)).double()
    u, _, v = torch.linalg.svd(cross, full_matrices=False)
    mapper = summed(x, y).procrustes(scale=False)
    assert isinstance(mapper, AffineMapper)
    assert torch.allclose(mapper.weight.double(), (u @ v).T, atol=1e-5)


def test_no_rotation_is_better_than_the_procrustes_one(data: tuple[Tensor, Tensor]) -> None:
    x, y = data[0], data[0].flip(1) + 2.0 * torch.randn(500, 8, generator=torch.Generator().manual_seed(5))
    mapper = summed(x, y).procrustes()
    assert isinstance(mapper, AffineMapper)
    best = float((mapper(x) - y).square().sum())
    for seed in range(20):
        turn = torch.linalg.matrix_exp(1e-2 * _skew(8, seed))
        weight = mapper.weight @ turn.T
        mapped = (x - x.mean(0)) @ weight.T
        assert best <= float((mapped - (y - y.mean(0))).square().sum()) * (1 + 1e-5)
    assert best < float((summed(x, y).procrustes(scale=False)(x) - y).square().sum())


def _skew(width: int, seed: int) -> Tensor:
    a = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    return a - a.T


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_low_rank_is_the_best_map_of_its_rank(data: tuple[Tensor, Tensor], ridge: float, residual: bool) -> None:
    """Against the truncated SVD of the problem whose rows the penalty adds to (Mukherjee and Zhu 2011)."""
    x = data[0].double()
    y = x.flip(1) + torch.randn(500, 8, generator=torch.Generator().manual_seed(4)).double()
    goal = y - x if residual else y
    centred, wanted = x - x.mean(0), goal - goal.mean(0)
    penalty = ridge * float(centred.square().sum(0).mean())
    longer = torch.cat([centred, penalty**0.5 * torch.eye(8, dtype=torch.float64)])
    w_SD = torch.linalg.lstsq(longer, torch.cat([wanted, torch.zeros(8, 8, dtype=torch.float64)])).solution
    _, _, v = torch.linalg.svd(longer @ w_SD, full_matrices=False)
    expected = (w_SD @ v[:3].T @ v[:3]).T
    mapper = summed(x, y).low_rank(rank=3, ridge=ridge, residual=residual)
    assert isinstance(mapper, LowRankMapper)
    assert (mapper.down_weight.shape, mapper.up_weight.shape) == ((3, 8), (8, 3))
    assert torch.allclose((mapper.up_weight @ mapper.down_weight).double(), expected, atol=1e-4)
    assert torch.allclose(mapper(x.float()).mean(0).double(), y.mean(0), atol=1e-2)


def test_full_rank_is_ridge(data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    whole = summed(x, y).low_rank(rank=5, ridge=0.1)
    assert torch.allclose(whole(x), fit(x, y, ridge=0.1)(x), atol=1e-3)
