"""Steering vectors: activations of prompts, transfer through a mapper, norms and controls.

Shapes: R rows (prompts), N tokens, S width of the source model, D width of the target model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.functional import jvp
from torch.nn import functional as F

from mappers.activations.collect import ActivationBatch, collect
from mappers.errors import DataError
from mappers.loading import LoadedModel
from mappers.modules import AutoencoderMapper, Mapper
from mappers.rendering import Rendered
from mappers.sites import Site

Position = Literal["last", "mean"] | int
"""Where a prompt is read: its ``last`` token, the ``mean`` over its tokens, or an index, negative from the end."""

TextPosition = Position | Literal["answer"]
"""The same, or the mean over the tokens from which a given ``answer`` is predicted."""

Pick = Callable[[int, Tensor], Tensor]
"""What is kept of the activations ``h_ND`` of a sequence, whose number comes first."""

Direction = Callable[[Tensor, Tensor], Tensor]
"""A method: ``(positive_RD, negative_RD)`` to a direction ``v_D``; see :mod:`mappers.directions`."""


class SiteNorms:
    """Root mean square norm of the residual stream at each site, over a stream of batches (float64 sums).

    The first token of a sequence of several is left out: many models keep an attention sink there, of a norm that is
    hundreds of times that of any token.
    """

    def __init__(self) -> None:
        self._squares: dict[Site, float] = {}
        self._tokens = 0

    def add(self, batch: ActivationBatch) -> None:
        """Counts the real tokens of a batch."""
        counted_BT = batch.mask_BT.clone()
        counted_BT[batch.mask_BT.sum(1) > 1, 0] = False
        self._tokens += int(counted_BT.sum())
        for site, h_BTD in batch.hidden.items():
            squares = h_BTD[counted_BT].double().square().sum()
            self._squares[site] = self._squares.get(site, 0.0) + float(squares)

    def values(self) -> dict[Site, float]:
        """The norms so far; empty without tokens."""
        return {site: float((squares / self._tokens) ** 0.5) for site, squares in self._squares.items()}


def picked_activations(
    loaded: LoadedModel,
    sites: Sequence[Site],
    sequences: Sequence[Sequence[int]],
    pick: Pick,
    *,
    batch_size: int,
    norms: SiteNorms | None = None,
) -> dict[Site, list[Tensor]]:
    """What ``pick`` keeps of each sequence, per site, in the sequences' order (float32, on the CPU).

    ``norms`` counts every token that passes. Raises DataError where there is no sequence or an empty one.
    """
    if not sequences or not all(sequences):
        raise DataError("a vector needs prompts of at least one token: take empty rows out of the dataset")
    found: dict[Site, dict[int, Tensor]] = {site: {} for site in sites}
    for batch in collect(loaded, sites, sequences, batch_size=batch_size):
        if norms is not None:
            norms.add(batch)
        lengths = batch.mask_BT.sum(1)
        for site, h_BTD in batch.hidden.items():
            for place, row in enumerate(batch.rows):
                found[site][row] = pick(row, h_BTD[place, : int(lengths[place])]).cpu()
    return {site: [rows[row] for row in range(len(sequences))] for site, rows in found.items()}


def row_activations(
    loaded: LoadedModel,
    sites: Sequence[Site],
    sequences: Sequence[Sequence[int]],
    *,
    position: Position,
    batch_size: int,
    norms: SiteNorms | None = None,
) -> dict[Site, Tensor]:
    """One activation ``h_RD`` per site and sequence, at ``position``; otherwise as :func:`picked_activations`.

    Raises DataError for a sequence that is too short to have the position.
    """
    if isinstance(position, int) and sequences and min(map(len, sequences)) < (position + 1, -position)[position < 0]:
        raise DataError(f"a prompt has no token at position {position}: take short rows out of the dataset")

    def pick(_row: int, h_ND: Tensor) -> Tensor:
        return h_ND.mean(0) if position == "mean" else h_ND[-1 if position == "last" else position]

    found = picked_activations(loaded, sites, sequences, pick, batch_size=batch_size, norms=norms)
    return {site: torch.stack(rows) for site, rows in found.items()}


def text_activations(
    loaded: LoadedModel,
    sites: Sequence[Site],
    texts: Sequence[Rendered],
    *,
    position: TextPosition,
    batch_size: int,
    norms: SiteNorms | None = None,
) -> dict[Site, Tensor]:
    """As :func:`row_activations`, of texts that for ``answer`` have one.

    Where two texts have the same answer, all that differs there is what the model makes of their prompts meanwhile.
    """
    sequences = [text.ids for text in texts]
    if position != "answer":
        return row_activations(loaded, sites, sequences, position=position, batch_size=batch_size, norms=norms)
    starts = [text.answer_start for text in texts if text.answer_start is not None]
    if len(starts) < len(texts):
        raise DataError("position 'answer' reads the answers of the rows, and some have none: take them out")

    def pick(row: int, h_ND: Tensor) -> Tensor:
        return h_ND[starts[row] - 1 : -1].mean(0)

    found = picked_activations(loaded, sites, sequences, pick, batch_size=batch_size, norms=norms)
    return {site: torch.stack(rows) for site, rows in found.items()}


def difference_in_means(positive_RD: Tensor, negative_RD: Tensor) -> Tensor:
    """``mean(positive) - mean(negative)``, shape ``(D,)`` (arXiv 2503.04429, section 4; Arditi et al. 2024)."""
    return positive_RD.mean(0) - negative_RD.mean(0)


def transfer_by_pairs(
    mapper: Mapper, positive_RS: Tensor, negative_RS: Tensor, direction: Direction = difference_in_means
) -> Tensor:
    """The vector's own method over mapped activations, shape ``(D,)``: by default ``mean f(h+) - mean f(h-)``.

    The bias cancels, and a ReLU map is read where it was trained.
    """
    with torch.no_grad():
        return direction(mapper(positive_RS), mapper(negative_RS))


def transfer_linear(mapper: Mapper, v_S: Tensor) -> Tensor:
    """``W v``, shape ``(D,)``; raises DataError for a mapper that is not affine."""
    return linear_part(mapper) @ v_S


def transfer_by_jacobian(mapper: Mapper, mean_S: Tensor, v_S: Tensor) -> Tensor:
    """``J_f(mean) v``, shape ``(D,)``: the map's derivative along ``v`` at a typical activation.

    For a ReLU map where only the vector is at hand; for an affine one it is ``W v``.
    """
    mapped_D: Tensor = jvp(mapper, mean_S, v_S)[1]  # type: ignore[no-untyped-call]
    return mapped_D


def linear_part(mapper: Mapper) -> Tensor:
    """The matrix ``W_DS`` of an affine mapper of any kind; raises DataError for an autoencoder, which has none."""
    if isinstance(mapper, AutoencoderMapper):
        raise DataError(
            "an affine mapper is needed here, and an autoencoder is none: use another, or for a vector the rule "
            "'pairs' or 'jacobian'"
        )
    return mapper.linear_part()


def rescale(v_D: Tensor, norm: float) -> Tensor:
    """The vector at a given Euclidean norm; raises DataError for a zero vector, which has no direction."""
    length = float(v_D.norm())
    if length == 0.0:
        raise DataError("the vector is zero and has no direction to rescale: check that the two datasets differ")
    return v_D * (norm / length)


def cosine(a_D: Tensor, b_D: Tensor) -> float:
    """Cosine of the angle between two vectors."""
    return float(F.cosine_similarity(a_D, b_D, dim=0))


def random_vector(width: int, norm: float, seed: int) -> Tensor:
    """A vector of a given norm in a uniformly random direction: the control that a transferred vector has to beat."""
    return rescale(torch.randn(width, generator=torch.Generator().manual_seed(seed)), norm)
