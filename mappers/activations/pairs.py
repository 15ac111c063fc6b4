"""Aligned activations of two models that read the same texts.

Shapes: N token pairs, S source width, D target width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mappers.activations.collect import read_sites
from mappers.activations.masks import has_text
from mappers.alignment import Alignment, TokenPairs, align
from mappers.loading import LoadedModel
from mappers.rendering import Rendered
from mappers.sites import Site


@dataclass(frozen=True, slots=True)
class Pairs:
    """Aligned activations: ``x_NS`` of the source model, ``y_ND`` of the target, float32 on the CPU.

    ``special`` and ``massive`` count the pairs that were left out: tokens without text of their own, and activations
    longer than the reader's ``limit``, on either side.
    """

    x_NS: Tensor
    y_ND: Tensor
    special: int = 0
    massive: int = 0


@dataclass(frozen=True, slots=True)
class Reader:
    """One side of a pairing: a model, the site that is read, and the texts as this model renders them.

    ``limit`` is the longest Euclidean norm that is kept (:meth:`mappers.activations.masks.Mask.norm_limits`).
    """

    loaded: LoadedModel
    site: Site
    texts: Sequence[Rendered]
    limit: float | None = None


def paired_activations(
    source: Reader, target: Reader, how: Alignment, *, batch_size: int, special_tokens: bool = True
) -> Iterator[Pairs]:
    """Token pairs of text i of both sides, batch by batch (``batch_size`` texts, of like length).

    Without ``special_tokens`` both tokens of a pair have text of their own. Raises DataError where a text's contents
    differ between the sides.
    """
    found = [align(ours, theirs, how) for ours, theirs in zip(source.texts, target.texts, strict=True)]
    pairs = (
        found if special_tokens else [_with_text(*row) for row in zip(source.texts, target.texts, found, strict=True)]
    )
    order = sorted((row for row, aligned in enumerate(found) if aligned), key=lambda row: len(source.texts[row].ids))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        x_NS = _pick(source, rows, [[i for i, _ in pairs[row]] for row in rows])
        y_ND = _pick(target, rows, [[j for _, j in pairs[row]] for row in rows])
        special = sum(len(found[row]) - len(pairs[row]) for row in rows)
        massive_N = _beyond(x_NS, source.limit) | _beyond(y_ND, target.limit)
        yield Pairs(x_NS[~massive_N], y_ND[~massive_N], special, int(massive_N.sum()))


def concatenate(parts: Sequence[Pairs]) -> Pairs:
    """All pairs of several batches as one."""
    return Pairs(
        torch.cat([part.x_NS for part in parts]),
        torch.cat([part.y_ND for part in parts]),
        sum(part.special for part in parts),
        sum(part.massive for part in parts),
    )


def pick_tokens(
    loaded: LoadedModel, sites: Sequence[Site], sequences: Sequence[Sequence[int]], indices: Sequence[Sequence[int]]
) -> dict[Site, Tensor]:
    """``h_ND`` at each site of the tokens ``indices[i]`` of sequence i, row after row; one forward, on the CPU."""
    batch = read_sites(loaded, sites, sequences, range(len(sequences)))
    row_N = torch.tensor([row for row, chosen in enumerate(indices) for _ in chosen], dtype=torch.long)
    token_N = torch.tensor([token for chosen in indices for token in chosen], dtype=torch.long)
    return {site: h_BTD[row_N, token_N].cpu() for site, h_BTD in batch.hidden.items()}


def _pick(reader: Reader, rows: Sequence[int], indices: Sequence[Sequence[int]]) -> Tensor:
    sequences = [reader.texts[row].ids for row in rows]
    return pick_tokens(reader.loaded, [reader.site], sequences, indices)[reader.site]


def _with_text(source: Rendered, target: Rendered, pairs: TokenPairs) -> TokenPairs:
    ours, theirs = has_text(source), has_text(target)
    return [(i, j) for i, j in pairs if ours[i] and theirs[j]]


def _beyond(h_ND: Tensor, limit: float | None) -> Tensor:
    """True where the norm exceeds the limit; never for NaN, which fits have to refuse."""
    beyond_N: Tensor = h_ND.norm(dim=-1) > (torch.inf if limit is None else limit)
    return beyond_N
