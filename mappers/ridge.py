"""Affine maps in closed form from sums that are streamed over any number of tokens.

Shapes: N tokens, S source width, D target width. Sums are float64; memory is O(S^2 + S D) whatever N is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mappers.errors import TrainingError
from mappers.modules import AffineMapper, MapperConfig

_EIGENVALUE_CUTOFF = 1e-12


class RidgeSums:
    """Sums of one pass over pairs of activations, and the maps that minimise squared error over them.

    Values are taken relative to the first batch's mean: residual streams lie far from zero in a few dimensions, and
    centring sums of large squares afterwards would lose the digits that matter.
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

    def solve(self, *, ridge: float, residual: bool = False) -> AffineMapper:
        """The map that minimises ``|xW + b - y|^2 + penalty |W|^2``; the bias is not penalised.

        ``penalty`` is ``ridge`` times tokens times the mean variance of a source dimension, so that it means the same
        for every model and every number of tokens. A residual map penalises the departure from the identity instead.
        Raises TrainingError without tokens.
        """
        if self.tokens == 0:
            raise TrainingError("no token pairs to fit a map on: use other prompts or another alignment")
        mean_x, mean_y = self._sum_x / self.tokens, self._sum_y / self.tokens
        xx = self._xx - self.tokens * torch.outer(mean_x, mean_x)
        xy = self._xy - self.tokens * torch.outer(mean_x, mean_y)
        mean_x, mean_y = mean_x + self._shift_x, mean_y + self._shift_y
        if residual:
            xy, mean_y = xy - xx, mean_y - mean_x
        w_SD = _solve_positive(xx, xy, ridge * float(xx.diagonal().mean()))
        config = MapperConfig(kind="ridge", d_source=len(mean_x), d_target=len(mean_y), residual=residual)
        mapper = AffineMapper(config)
        mapper.load_state_dict({"weight": w_SD.T.float(), "bias": (mean_y - mean_x @ w_SD).float()})
        return mapper.requires_grad_(False)


def _solve_positive(xx: Tensor, xy: Tensor, penalty: float) -> Tensor:
    """Solves ``(xx + penalty I) w = xy``; where ``xx`` is singular, the least-norm solution by eigenvalues."""
    regular = xx + penalty * torch.eye(len(xx), dtype=xx.dtype)
    factor, info = torch.linalg.cholesky_ex(regular)
    if int(info) == 0:
        return torch.cholesky_solve(xy, factor)
    values, vectors = torch.linalg.eigh(regular)
    inverse = torch.where(values > _EIGENVALUE_CUTOFF * values.max(), 1.0 / values, 0.0)
    solution: Tensor = vectors @ (inverse[:, None] * (vectors.T @ xy))
    return solution
