"""Behaviour by site and strength: many edits of the activations, each on the same prompts, in shared batches.

Shapes: C cells, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mappers.dataset import DatasetRow
from mappers.measures.text import exact_match
from mappers.sites import Site
from server.evaluation.answering import Answerer, Asked, Done
from server.interventions.catalog import ResolvedIntervention

Aim = Literal["exact_match", "marker_present", "marker_absent"]
"""What an answer should be. An empty answer, which a model that an edit has broken gives, never is."""

STEERS_WELL = 0.8
"""Share of the best site's gain from which a site counts as steering well, in the paper's rule."""

_ROWS_A_STEP = 512


@dataclass(frozen=True, slots=True)
class Cell:
    """One edit at one site. ``source`` is the site in another model that it comes from, where it does."""

    site: Site
    strength: float
    intervention: ResolvedIntervention
    source: Site | None = None


Edit = Callable[[int], tuple[ResolvedIntervention, ...]]
"""What is done to the activations of each prompt, by its number: mostly the same to all."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Says of an answer whether it holds ``marker`` and whether it equals the row's own, up to white space."""

    marker: str | None

    def verdict(self, text: str, row: DatasetRow) -> tuple[bool, bool, bool]:
        """``(answered, holds the marker, equals the row's answer)``; what cannot be asked of the row is False."""
        answered = bool(text.strip())
        right = answered and row.answer is not None and exact_match(text, row.answer)
        return answered, self.marker is not None and self.marker in text, right


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What became of every prompt in every cell: booleans of shape ``(C, P)``."""

    answered_CP: Tensor
    marker_CP: Tensor
    exact_CP: Tensor

    def of(self, cells: slice) -> Verdicts:
        """Those of some of the cells."""
        return Verdicts(self.answered_CP[cells], self.marker_CP[cells], self.exact_CP[cells])

    def reached(self, aim: Aim) -> Tensor:
        """Whether each answer is what it should be, shape ``(C, P)``."""
        if aim == "exact_match":
            return self.exact_CP
        return self.answered_CP & (self.marker_CP if aim == "marker_present" else ~self.marker_CP)


class Progress:
    """Verdicts as far as they are known, as one tensor that can be saved and taken up again."""

    def __init__(self, cells: int, prompts: int, saved: Tensor | None = None) -> None:
        """``saved`` is what :meth:`state` gave; one of another shape belongs to another sweep and is not used."""
        fresh = torch.full((cells, prompts, 3), -1, dtype=torch.int8)
        self._known_CPJ = saved.clone() if saved is not None and saved.shape == fresh.shape else fresh

    @property
    def missing(self) -> list[int]:
        """The cells that have not been measured, in order."""
        return (self._known_CPJ[:, 0, 0] < 0).nonzero().flatten().tolist()

    def put(self, cell: int, verdicts: Sequence[tuple[bool, bool, bool]]) -> None:
        """Takes the verdicts of one cell, prompt by prompt."""
        self._known_CPJ[cell] = torch.tensor(verdicts, dtype=torch.int8)

    def state(self) -> Tensor:
        """Everything known, int8 of shape ``(C, P, 3)``, -1 where nothing is."""
        return self._known_CPJ

    def verdicts(self) -> Verdicts:
        """All verdicts, once no cell is missing."""
        assert not self.missing
        return Verdicts(*(self._known_CPJ == 1).unbind(-1))


def answer_cells(
    answerer: Answerer,
    edits: Sequence[Edit],
    rows: Sequence[DatasetRow],
    judge: Judge,
    progress: Progress,
    *,
    max_tokens: int,
    done: Done,
) -> Iterator[int]:
    """Fills ``progress``: all rows under each of ``edits``, several cells at once; gives the cells known after a step.

    Rows of all cells share the engine's batches, so a batch holds as many sites and strengths as there is room for.
    """
    missing = progress.missing
    size = max(1, _ROWS_A_STEP // len(rows))
    for start in range(0, len(missing), size):
        chosen = missing[start : start + size]
        asked = [Asked(row, edits[cell](prompt)) for cell in chosen for prompt, row in enumerate(rows)]
        texts = iter(answerer.answers(asked, max_tokens=max_tokens, done=done))
        for cell in chosen:
            progress.put(cell, [judge.verdict(next(texts), row) for row in rows])
        yield len(edits) - len(missing) + start + len(chosen)


def best(cells: Sequence[Cell], rates: Sequence[float]) -> int:
    """The cell with the highest rate; of equals the one of smallest strength, then of the highest site.

    An edit at a high site leaves more of the keys and values as they were.
    """
    return max(range(len(cells)), key=lambda c: (rates[c], -abs(cells[c].strength), cells[c].site))


def last_good_site(cells: Sequence[Cell], rates: Sequence[float], unsteered: float) -> int | None:
    """The rule of arXiv 2503.04429: the last site that still steers well, before the sharp drop; there its best cell.

    A site steers well that keeps ``STEERS_WELL`` of the best site's gain over ``unsteered``. None where nothing gains.
    """
    gain = max(rates) - unsteered
    if gain <= 0:
        return None
    last = max(cell.site for cell, rate in zip(cells, rates, strict=True) if rate - unsteered >= STEERS_WELL * gain)
    return _at(cells, rates, lambda cell: cell.site == last)


def _at(cells: Sequence[Cell], rates: Sequence[float], wanted: Callable[[Cell], bool]) -> int:
    places = [place for place, cell in enumerate(cells) if wanted(cell)]
    return places[best([cells[place] for place in places], [rates[place] for place in places])]


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's: the correlation of ranks, equal values sharing theirs. None where a side never varies."""
    ranks = torch.stack([_ranks(torch.tensor(values, dtype=torch.float64)) for values in (a, b)])
    if len(a) < 2 or bool((ranks.std(1) == 0).any()):
        return None
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    below = (values[None] < values[:, None]).sum(1)
    return below + ((values[None] == values[:, None]).sum(1) + 1) / 2
