"""What a sweep found: the cell that is chosen, its controls, the predictors' worth, and the pictures.

Shapes: C cells, P prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan

from pydantic import JsonValue
from torch import Tensor

from mappers.evaluation import rate
from mappers.sites import Place
from server.evaluation.heatmap import Axis, heat_map
from server.evaluation.sweep import Aim, Cell, Verdicts, best, last_good_site, rank_correlation

RULE = "highest rate on the validation prompts; of equals the smallest strength, then the highest site"

_AIMS = {
    "exact_match": "answers equal to the expected",
    "marker_present": "answers with the marker",
    "marker_absent": "answers without the marker",
}


@dataclass(frozen=True)
class Sweep:
    """Cells with their verdicts; ``unsteered`` are those of no edit. The first ``validation`` prompts choose.

    ``controls`` are the verdicts of other edits at the chosen cell, by name; ``predictors`` one figure for each place,
    by name, the source None where it says something about the swept model's site alone.
    """

    cells: Sequence[Cell]
    verdicts: Verdicts
    unsteered: Verdicts
    validation: int
    aim: Aim
    controls: Mapping[str, Verdicts] = field(default_factory=dict)
    predictors: Mapping[str, Mapping[Place, float]] = field(default_factory=dict)

    @property
    def chosen(self) -> int:
        """The chosen cell, by :data:`RULE`."""
        return best(self.cells, self._validated)

    @property
    def chosen_by_paper(self) -> int | None:
        """The cell that the rule of arXiv 2503.04429 would choose; None where nothing gains."""
        unsteered = float(self.unsteered.reached(self.aim)[0, : self.validation].float().mean())
        return last_good_site(self.cells, self._validated, unsteered)

    @property
    def _validated(self) -> list[float]:
        return self._rates(slice(0, self.validation))

    def rates(self) -> list[float]:
        """The share of all prompts at which each cell reaches the aim."""
        return self._rates(slice(None))

    def _rates(self, prompts: slice) -> list[float]:
        rates: list[float] = self.verdicts.reached(self.aim)[:, prompts].float().mean(1).tolist()
        return rates

    def content(self) -> dict[str, JsonValue]:
        """Everything as JSON; rates in [0, 1], those of ``chosen`` and its controls on the test prompts with bounds."""
        chosen, paper = self.chosen, self.chosen_by_paper
        prompts = self.verdicts.exact_CP.shape[1]
        return {
            "aim": self.aim,
            "rule": RULE,
            "prompts": {"validation": self.validation, "test": prompts - self.validation},
            "unsteered": self._figures(self.unsteered, 0) | {"test_bounds": self._bounds(self.unsteered, 0)},
            "chosen": self._described(chosen) | {"test_bounds": self._bounds(self.verdicts, chosen)},
            "chosen_by_paper_rule": None if paper is None else self._described(paper),
            "controls": {
                name: self._figures(verdicts, 0) | {"test_bounds": self._bounds(verdicts, 0)}
                for name, verdicts in self.controls.items()
            },
            "predictors": {name: self._predictor(figures) for name, figures in self.predictors.items()},
            "cells": [self._described(cell) for cell in range(len(self.cells))],
        }

    def _described(self, place: int) -> dict[str, JsonValue]:
        cell = self.cells[place]
        source: dict[str, JsonValue] = {} if cell.source is None else {"source_site": str(cell.source)}
        return source | {"site": str(cell.site), "strength": cell.strength} | self._figures(self.verdicts, place)

    def _figures(self, verdicts: Verdicts, cell: int) -> dict[str, JsonValue]:
        reached_P = verdicts.reached(self.aim)[cell]
        return {
            "validation": _share(reached_P[: self.validation]),
            "test": _share(reached_P[self.validation :]),
            "answered": _share(verdicts.answered_CP[cell]),
            "marker_rate": _share(verdicts.marker_CP[cell]),
            "exact_match": _share(verdicts.exact_CP[cell]),
        }

    def _bounds(self, verdicts: Verdicts, cell: int) -> JsonValue:
        """The 95 % bootstrap interval of the rate on the test prompts."""
        found = rate(map(str, verdicts.reached(self.aim)[cell, self.validation :].tolist()), "True".__eq__)
        return [found.low, found.high]

    def _predictor(self, figures: Mapping[Place, float]) -> JsonValue:
        """The figures, and their rank correlation with the best rate at each place over all strengths."""
        reached = [self._best_at(place) for place in figures]
        described: list[JsonValue] = []
        for (source, site), best_rate in zip(figures, reached, strict=True):
            named: dict[str, JsonValue] = {} if source is None else {"source_site": str(source)}
            described.append(named | {"site": str(site), "value": figures[source, site], "best": best_rate})
        return {"rank_correlation": rank_correlation(list(figures.values()), reached), "places": described}

    def _best_at(self, place: Place) -> float:
        source, site = place
        pairs = zip(self.cells, self.rates(), strict=True)
        return max(r for cell, r in pairs if cell.site == site and source in (None, cell.source))

    def pictures(self, title: str, unit: str) -> dict[str, bytes]:
        """``heatmap``: sites by strengths in ``unit``; ``heatmap-sources``: source sites by sites, where there are any.

        Where several cells fall together, the best one is shown.
        """
        strength = Axis(f"strength ({unit})", [f"{value:g}" for value in sorted({c.strength for c in self.cells})])
        at = [f"{cell.strength:g}" for cell in self.cells]
        sources = [str(cell.source.layer) for cell in self.cells if cell.source is not None]
        if not sources:
            return {"heatmap": self._picture(title, strength, at)}
        source = Axis("layer of the source", sorted(set(sources), key=int))
        return {
            "heatmap": self._picture(f"{title},\nat the best source layer", strength, at),
            "heatmap-sources": self._picture(f"{title},\nat the best strength", source, sources),
        }

    def _picture(self, title: str, columns: Axis, at: Sequence[str]) -> bytes:
        """Layers by ``columns``; ``at`` is the label of each cell's column."""
        layers = sorted({cell.site.layer for cell in self.cells})
        rows = [layers.index(cell.site.layer) for cell in self.cells]
        places = [columns.labels.index(label) for label in at]
        values = [[nan] * len(columns.labels) for _ in layers]
        for row, place, found in sorted(zip(rows, places, self.rates(), strict=True)):
            values[row][place] = found  # ascending, so the best stays
        return heat_map(
            values,
            Axis("layer", list(map(str, layers))),
            columns,
            title=title,
            scale=_AIMS[self.aim],
            chosen=(rows[self.chosen], places[self.chosen]),
        )


def _share(reached_P: Tensor) -> float:
    return float(reached_P.float().mean())
