"""Steering vectors: extraction by difference in means, transfer through a mapper, controls.

Shapes: R rows (prompts), N tokens, S width of the source model, D width of the target model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mappers.activations.collect import collect
from mappers.errors import DataError
from mappers.loading import LoadedModel
from mappers.modules import AutoencoderMapper, Mapper
from mappers.sites import Site

Position = Literal["last", "mean"]


def row_activations(
    loaded: LoadedModel,
    sites: Sequence[Site],
    sequences: Sequence[Sequence[int]],
    *,
    position: Position,
    batch_size: int,
) -> dict[Site, Tensor]:
    """One float32 activation ``h_RD`` per site and sequence: at its ``last`` token, or the ``mean`` over its tokens.

    Raises DataError where there is no sequence or an empty one.
    """
    if not sequences or not all(sequences):
        raise DataError("a vector needs prompts of at least one token: take empty rows out of the dataset")
    rows: dict[Site, dict[int, Tensor]] = {site: {} for site in sites}
    for batch in collect(loaded, sites, sequences, batch_size=batch_size):
        lengths = batch.mask_BT.sum(1)
        for site, h_BTD in batch.hidden.items():
            for place, row in enumerate(batch.rows):
                h_ND = h_BTD[place, : int(lengths[place])]
                rows[site][row] = (h_ND[-1] if position == "last" else h_ND.mean(0)).cpu()
    return {site: torch.stack([found[row] for row in range(len(sequences))]) for site, found in rows.items()}


def difference_in_means(positive_RD: Tensor, negative_RD: Tensor) -> Tensor:
    """``mean(positive) - mean(negative)``, shape ``(D,)`` (arXiv 2503.04429, section 4; Arditi et al. 2024)."""
    return positive_RD.mean(0) - negative_RD.mean(0)


def transfer_by_pairs(mapper: Mapper, positive_RS: Tensor, negative_RS: Tensor) -> Tensor:
    """``mean f(h+) - mean f(h-)``, shape ``(D,)``: the bias cancels, and a ReLU map is read where it was trained."""
    with torch.no_grad():
        return difference_in_means(mapper(positive_RS), mapper(negative_RS))


def transfer_linear(mapper: Mapper, v_S: Tensor) -> Tensor:
    """``W v``, shape ``(D,)``; raises DataError for a mapper that is not affine."""
    if isinstance(mapper, AutoencoderMapper):
        raise DataError("rule 'linear' needs an affine mapper, of any kind: use rule 'pairs' for an autoencoder")
    return mapper.linear_part() @ v_S


def rescale(v_D: Tensor, norm: float) -> Tensor:
    """The vector at a given Euclidean norm; raises DataError for a zero vector, which has no direction."""
    length = float(v_D.norm())
    if length == 0.0:
        raise DataError("the vector is zero and has no direction to rescale: check that the two datasets differ")
    return v_D * (norm / length)


def rms_norm(h_ND: Tensor) -> float:
    """Root mean square of the tokens' Euclidean norms at a site: the unit of a norm given as a fraction."""
    return float(h_ND.square().sum(-1).mean().sqrt())


def cosine(a_D: Tensor, b_D: Tensor) -> float:
    """Cosine of the angle between two vectors."""
    return float(F.cosine_similarity(a_D, b_D, dim=0))


def random_vector(width: int, norm: float, seed: int) -> Tensor:
    """A vector of a given norm in a uniformly random direction: the control that a transferred vector has to beat."""
    return rescale(torch.randn(width, generator=torch.Generator().manual_seed(seed)), norm)
