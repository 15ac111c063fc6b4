"""How alike two sites are, from activations of the same tokens: cheap, and no promise that an edit works there.

Shapes: N tokens, S and D widths, K principal directions kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from mappers.errors import DataError
from mappers.sites import Site


@dataclass(frozen=True, slots=True)
class Similarity:
    """Both in [0, 1]: 1 for sites that differ by a rotation and a scale (``cka``), by any linear map (``svcca``)."""

    cka: float
    svcca: float


class _Side:
    """One site's activations, centred (float64): ``x_NS``, and an orthonormal basis ``u_NK`` of their main part."""

    def __init__(self, x_NS: Tensor, variance: float) -> None:
        self.x_NS = x_NS.double() - x_NS.double().mean(0)
        if len(x_NS) < 2 or not 0 < float(self.x_NS.square().sum()) < inf:
            raise DataError("similarity needs at least two tokens with finite, different activations")
        u_NR, s_R, _ = torch.linalg.svd(self.x_NS, full_matrices=False)
        squares = s_R.square()
        kept = int((squares.cumsum(0) < variance * squares.sum()).sum()) + 1
        self.u_NK = u_NR[:, :kept]
        self.norm = float(squares.square().sum().sqrt())


def similarities(
    source: Mapping[Site, Tensor], target: Mapping[Site, Tensor], *, variance: float = 0.99
) -> dict[tuple[Site, Site], Similarity]:
    """Every source site against every target site; row i of ``x_NS`` and ``y_ND`` is the same token.

    ``cka`` is linear CKA, ``|Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)`` of centred activations (Kornblith et al. 2019, arXiv
    1905.00414, section 3). ``svcca`` is the mean canonical correlation between the principal directions that hold
    ``variance`` of each side (Raghu et al. 2017, arXiv 1706.05806). Both come out too high where N is not well above
    the widths. Raises DataError for fewer than two tokens, or activations that are constant or not finite.
    """
    ours = {site: _Side(x_NS, variance) for site, x_NS in source.items()}
    theirs = {site: _Side(y_ND, variance) for site, y_ND in target.items()}
    return {(s, t): _compare(x, y) for s, x in ours.items() for t, y in theirs.items()}


def _compare(x: _Side, y: _Side) -> Similarity:
    correlations = torch.linalg.svdvals(x.u_NK.T @ y.u_NK)
    return Similarity(
        cka=float((y.x_NS.T @ x.x_NS).square().sum()) / (x.norm * y.norm),
        svcca=min(float(correlations.mean()), 1.0),
    )
