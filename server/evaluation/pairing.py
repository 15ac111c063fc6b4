"""Activations of two models on the same texts, at all sites of both in one pass.

Shapes: N token pairs, S source width, D target width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mappers.activations.collect import collect
from mappers.activations.pairs import Pairs
from mappers.alignment import Alignment, align
from mappers.dataset import DatasetRow
from mappers.loading import LoadedModel
from mappers.rendering import Rendered, render
from mappers.sites import Site

_BATCH = 64


@dataclass(frozen=True, slots=True)
class PairedSites:
    """``source[site]`` is ``x_NS`` and ``target[site]`` is ``y_ND`` of the same N token pairs (float32, CPU)."""

    source: Mapping[Site, Tensor]
    target: Mapping[Site, Tensor]

    def between(self, source: Site, target: Site) -> Pairs:
        """The pairs of one site each."""
        return Pairs(self.source[source], self.target[target])


def read_pairs(
    source: LoadedModel, target: LoadedModel, rows: Sequence[DatasetRow], how: Alignment = "offsets"
) -> PairedSites:
    """Reads every row with both models and keeps the activations of aligned tokens at all their sites.

    Raises DataError where a row's contents differ between the models' renderings.
    """
    ours, theirs = ([render(model.tokenizer, row, answer=row.answer) for row in rows] for model in (source, target))
    pairs = [align(one, other, how) for one, other in zip(ours, theirs, strict=True)]
    return PairedSites(
        _read(source, ours, [[i for i, _ in found] for found in pairs]),
        _read(target, theirs, [[j for _, j in found] for found in pairs]),
    )


def _read(loaded: LoadedModel, texts: Sequence[Rendered], chosen: Sequence[Sequence[int]]) -> dict[Site, Tensor]:
    found: dict[Site, dict[int, Tensor]] = {site: {} for site in loaded.stack.sites}
    for batch in collect(loaded, loaded.stack.sites, [text.ids for text in texts], batch_size=_BATCH):
        for site, h_BTD in batch.hidden.items():
            for place, row in enumerate(batch.rows):
                found[site][row] = h_BTD[place, list(chosen[row])].cpu()
    return {site: torch.cat([rows[row] for row in sorted(rows)]) for site, rows in found.items()}
