"""Affine maps in closed form from sums that are streamed over any number of tokens.

Shapes: N tokens, S source width, D target width, R rank. Sums are float64; memory is O(S^2 + S D) whatever N is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mappers.errors import TrainingError
from mappers.modules import Mapper, MapperConfig, MapperKind, zero_mapper

_EIGENVALUE_CUTOFF = 1e-12


@dataclass(frozen=True, slots=True)
class _Moments:
    """Means, and sums of products of centred values."""

    mean_S: Tensor
    mean_D: Tensor
    xx_SS: Tensor
    xy_SD: Tensor


class PairSums:
    """Sums of one pass over pairs of activations, and the affine maps that follow from them.

    Each map is fitted to the target, or with ``residual`` to the target's departure from the source. Values are taken
    relative to the first batch's mean: residual streams lie far from zero in a few dimensions, and centring sums of
    large squares afterwards would lose the digits that matter.
    """

    def __init__(self, d_source: int, d_target: int) -> None:
        self.tokens = 0
        self._shift_x = torch.zeros(d_source, dtype=torch.float64)
        self._shift_y = torch.zeros(d_target, dtype=torch.float64)
        self._sum_x = torch.zeros(d_source, dtype=torch.float64)
        self._sum_y = torch.zeros(d_target, dtype=torch.float64)
        self._xx = torch.zeros(d_source, d_source, dtype=torch.float64)
        self._xy = torch.zeros(d_source, d_target, dtype=torch.float64)

    def add(self, x_NS: Tensor, y_ND: Tensor) -> None:
        """Adds a batch of pairs; raises TrainingError where a value is not finite."""
        x, y = x_NS.detach().cpu().double(), y_ND.detach().cpu().double()
        if len(x) == 0:
            return
        if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
            raise TrainingError("activations are not finite: load the models in float32 or bfloat16")
        if self.tokens == 0:
            self._shift_x, self._shift_y = x.mean(0), y.mean(0)
        x, y = x - self._shift_x, y - self._shift_y
        self.tokens += len(x)
        self._sum_x += x.sum(0)
        self._sum_y += y.sum(0)
        self._xx.addmm_(x.T, x)
        self._xy.addmm_(x.T, y)

    def ridge(self, *, ridge: float, residual: bool = False) -> Mapper:
        """The map that minimises ``|xW + b - y|^2 + penalty |W|^2``; the bias is not penalised.

        ``penalty`` is ``ridge`` times tokens times the mean variance of a source dimension, so that it means the same
        for every model and every number of tokens. Raises TrainingError without tokens.
        """
        sums = self._moments(residual)
        w_SD = _solve_ridge(sums.xx_SS, sums.xy_SD, ridge)
        return _mapper("ridge", sums, {"weight": w_SD.T}, residual=residual)

    def low_rank(self, *, rank: int, ridge: float, residual: bool = False) -> Mapper:
        """The map of rank ``rank`` that minimises what :meth:`ridge` minimises: reduced-rank ridge regression.

        It is the ridge solution projected on the ``rank`` first principal directions of its fitted values (Izenman
        1975; with the penalty, Mukherjee and Zhu 2011). Raises TrainingError without tokens, ValueError for a rank
        above the smaller width.
        """
        sums = self._moments(residual)
        fitted_DD = _solve_ridge(sums.xx_SS, sums.xy_SD, ridge).T @ sums.xy_SD  # is W^T (xx + penalty I) W
        up_DR = torch.linalg.eigh(fitted_DD).eigenvectors[:, -rank:].flip(1)
        del fitted_DD  # a second solution costs less than to keep W meanwhile
        down_SR = _solve_ridge(sums.xx_SS, sums.xy_SD @ up_DR, ridge)
        weights = {"down_weight": down_SR.T, "up_weight": up_DR}
        return _mapper("low_rank", sums, weights, residual=residual, rank=rank)

    def procrustes(self, *, scale: bool = True, residual: bool = False) -> Mapper:
        """The (semi-)orthogonal ``Q`` with the largest ``tr(Q^T x^T y)`` on centred values, and the shift of the means.

        For ``S <= D`` that is also the ``Q`` of least squared error (Schoenemann 1966); for ``S > D``, where no closed
        form of that exists, ``Q`` has orthonormal columns. ``scale`` multiplies ``Q`` by the factor of least squared
        error, 1 otherwise. Raises TrainingError without tokens.
        """
        sums = self._moments(residual)
        q_SD = _nearest_orthogonal(sums.xy_SD)
        if scale:
            size = float((q_SD * (sums.xx_SS @ q_SD)).sum())
            q_SD *= float((q_SD * sums.xy_SD).sum()) / size if size > 0 else 0.0
        return _mapper("procrustes", sums, {"weight": q_SD.T}, residual=residual)

    def _moments(self, residual: bool) -> _Moments:
        """Centres the sums where they lie: copies of them would be most of what a fit of a wide model takes."""
        if self.tokens == 0:
            raise TrainingError("no token pairs to fit a map on: use other prompts or another alignment")
        mean_x, mean_y = self._sum_x / self.tokens, self._sum_y / self.tokens
        self._xx.addr_(mean_x, mean_x, alpha=-self.tokens)
        self._xy.addr_(mean_x, mean_y, alpha=-self.tokens)
        self._shift_x, self._shift_y = self._shift_x + mean_x, self._shift_y + mean_y
        self._sum_x.zero_()
        self._sum_y.zero_()
        if residual:
            return _Moments(self._shift_x, self._shift_y - self._shift_x, self._xx, self._xy - self._xx)
        return _Moments(self._shift_x, self._shift_y, self._xx, self._xy)


def _mapper(
    kind: MapperKind, sums: _Moments, weights: dict[str, Tensor], *, residual: bool, rank: int | None = None
) -> Mapper:
    """The module of such weights, with the bias that carries mean to mean."""
    mapped_D = sums.mean_S
    for weight in weights.values():
        mapped_D = weight @ mapped_D
    widths = {"d_source": len(sums.mean_S), "d_target": len(sums.mean_D)}
    mapper = zero_mapper(MapperConfig(kind=kind, residual=residual, rank=rank, **widths))
    state = {name: weight.float() for name, weight in weights.items()}
    mapper.load_state_dict({**state, "bias": (sums.mean_D - mapped_D).float()})
    return mapper.requires_grad_(False)


def _solve_ridge(xx: Tensor, xy: Tensor, ridge: float) -> Tensor:
    """Solves ``(xx + ridge mean(diag xx) I) w = xy``; where that is singular, the least-norm solution."""
    regular = xx.clone()
    regular.diagonal().add_(ridge * float(xx.diagonal().mean()))
    factor, info = torch.linalg.cholesky_ex(regular)
    if int(info) == 0:
        del regular
        return torch.cholesky_solve(xy, factor)
    values, vectors = torch.linalg.eigh(regular)
    inverse = torch.where(values > _EIGENVALUE_CUTOFF * values.max(), 1.0 / values, 0.0)
    solution: Tensor = vectors @ (inverse[:, None] * (vectors.T @ xy))
    return solution


def _nearest_orthogonal(m: Tensor) -> Tensor:
    """The polar factor ``U V^T`` of the singular vectors of ``m``, with orthonormal rows or columns.

    From the eigenvectors of ``m^T m``: half the memory of an SVD. Directions whose singular value is below 1e-8 of the
    largest are thereby known less well, but never less orthogonal: the QR factorisation sees to that.
    """
    if m.shape[0] < m.shape[1]:
        return _nearest_orthogonal(m.T).T
    _, v = torch.linalg.eigh(m.T @ m)
    v = v.flip(1)
    u, r = torch.linalg.qr(m @ v)
    u *= torch.where(r.diagonal() < 0, -1.0, 1.0)
    factor: Tensor = u @ v.T
    return factor
