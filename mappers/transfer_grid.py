"""Every source site against every target site from one reading of common texts.

Shapes: N token pairs, S source width, D target width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mappers.activations.collect import collect
from mappers.alignment import Alignment, TokenPairs, align
from mappers.errors import DataError
from mappers.loading import LoadedModel
from mappers.rendering import Rendered
from mappers.sites import Site

_BYTES_KEPT = 4 << 30


@dataclass(frozen=True, slots=True)
class Side:
    """A model, the sites that are read, and the texts as this model renders them."""

    loaded: LoadedModel
    sites: tuple[Site, ...]
    texts: Sequence[Rendered]

    @property
    def bytes_a_token(self) -> int:
        """Float32 activations of one token at all sites."""
        return 4 * len(self.sites) * self.loaded.stack.width


Activations = dict[Site, Tensor]


def aligned_sites(
    source: Side, target: Side, how: Alignment, *, batch_size: int, limit: int
) -> tuple[Activations, Activations]:
    """Float32 activations of the same tokens, ``x_NS`` and ``y_ND`` at each site, on the CPU.

    Texts are taken in order until ``limit`` token pairs (or 4 GiB) are there. Raises DataError where no token pairs,
    or where a text's contents differ between the sides.
    """
    limit = min(limit, _BYTES_KEPT // (source.bytes_a_token + target.bytes_a_token))
    pairs: list[TokenPairs] = []
    for ours, theirs in zip(source.texts, target.texts, strict=True):
        if sum(map(len, pairs)) >= limit:
            break
        pairs.append(align(ours, theirs, how))
    if not any(pairs):
        raise DataError("no token of the texts is paired: use other texts or another alignment")
    ours_wanted, theirs_wanted = ([[pair[side] for pair in found] for found in pairs] for side in (0, 1))
    return _read(source, ours_wanted, batch_size, limit), _read(target, theirs_wanted, batch_size, limit)


def map_vector(v_S: Tensor, x_NS: Tensor, targets: Mapping[Site, Tensor], *, ridge: float) -> dict[Site, Tensor]:
    """``W v``, shape ``(D,)``, for the ridge map ``W`` from ``x_NS`` to each of ``targets`` (float32).

    The same as the linear part of :meth:`mappers.pair_sums.PairSums.ridge`, yet without any map: with centred ``X`` and
    ``Y``, ``W v = Y^T X (X^T X + penalty)^-1 v`` costs one solution for all targets.
    """
    x = x_NS.double() - x_NS.double().mean(0)
    xx = x.T @ x
    penalty = ridge * float(xx.diagonal().mean())
    regular = xx + penalty * torch.eye(len(xx), dtype=xx.dtype)
    weights_N = x @ (torch.linalg.pinv(regular, hermitian=True) @ v_S.double())
    return {site: ((y_ND.double() - y_ND.double().mean(0)).T @ weights_N).float() for site, y_ND in targets.items()}


def _read(side: Side, wanted: Sequence[Sequence[int]], batch_size: int, limit: int) -> Activations:
    """The tokens ``wanted`` of each text, text after text."""
    found: dict[Site, dict[int, Tensor]] = {site: {} for site in side.sites}
    sequences = [text.ids if tokens else () for text, tokens in zip(side.texts, wanted, strict=False)]
    for batch in collect(side.loaded, side.sites, sequences, batch_size=batch_size):
        for site, h_BTD in batch.hidden.items():
            for place, row in enumerate(batch.rows):
                found[site][row] = h_BTD[place, list(wanted[row])].cpu()
    return {site: torch.cat([rows[row] for row in sorted(rows)])[:limit] for site, rows in found.items()}
