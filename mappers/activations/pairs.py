"""Aligned activations of two models that read the same texts.

Shapes: N token pairs, S source width, D target width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mappers.activations.collect import ActivationBatch, collect
from mappers.alignment import Alignment, align
from mappers.loading import LoadedModel
from mappers.rendering import Rendered
from mappers.sites import Site


@dataclass(frozen=True, slots=True)
class Pairs:
    """Aligned activations: ``x_NS`` of the source model, ``y_ND`` of the target, float32 on the CPU."""

    x_NS: Tensor
    y_ND: Tensor


@dataclass(frozen=True, slots=True)
class Reader:
    """One side of a pairing: a model, the site that is read, and the texts as this model renders them."""

    loaded: LoadedModel
    site: Site
    texts: Sequence[Rendered]


def paired_activations(source: Reader, target: Reader, how: Alignment, *, batch_size: int) -> Iterator[Pairs]:
    """Token pairs of text i of both sides, batch by batch (``batch_size`` texts, of like length).

    Raises DataError where a text's contents differ between the sides.
    """
    pairs = [align(ours, theirs, how) for ours, theirs in zip(source.texts, target.texts, strict=True)]
    order = sorted((row for row, found in enumerate(pairs) if found), key=lambda row: len(source.texts[row].ids))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        x_NS = _pick(source, rows, [[i for i, _ in pairs[row]] for row in rows])
        y_ND = _pick(target, rows, [[j for _, j in pairs[row]] for row in rows])
        yield Pairs(x_NS, y_ND)


def concatenate(parts: Sequence[Pairs]) -> Pairs:
    """All pairs of several batches as one."""
    return Pairs(torch.cat([part.x_NS for part in parts]), torch.cat([part.y_ND for part in parts]))


def _pick(reader: Reader, rows: Sequence[int], indices: Sequence[Sequence[int]]) -> Tensor:
    sequences = [reader.texts[row].ids for row in rows]
    (batch,) = collect(reader.loaded, [reader.site], sequences, batch_size=len(rows))
    places = {row: place for place, row in enumerate(batch.rows)}
    return torch.cat([_tokens(batch, reader.site, places[i], chosen) for i, chosen in enumerate(indices)])


def _tokens(batch: ActivationBatch, site: Site, place: int, indices: Sequence[int]) -> Tensor:
    return batch.hidden[site][place, list(indices)].cpu()
