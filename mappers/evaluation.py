"""Measures of effect: rates of a behaviour over texts, and how much of the activations a map explains.

Shapes: N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mappers.errors import DataError


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of ``count`` texts with its bootstrap interval."""

    value: float
    low: float
    high: float
    count: int


def rate(
    texts: Iterable[str],
    predicate: Callable[[str], bool],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Rate:
    """Share of texts for which ``predicate`` holds, with the percentile bootstrap interval at ``confidence``.

    A rate of exactly 0 or 1 has an interval of no width: the bootstrap cannot see what never occurred. Raises DataError
    without texts.
    """
    verdicts = [bool(predicate(text)) for text in texts]
    if not verdicts:
        raise DataError("a rate needs at least one text")
    value, tail = sum(verdicts) / len(verdicts), (1 - confidence) / 2
    drawn = np.random.default_rng(seed).binomial(len(verdicts), value, size=resamples) / len(verdicts)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Rate(value, float(low), float(high), len(verdicts))


class UnexplainedVariance:
    """FVU over a stream of batches: ``sum |y - target|^2 / sum |target - mean(target)|^2``.

    0 is perfect, 1 is as good as the constant mean. Sums are float64, relative to the first batch's mean.
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._shift_D: Tensor | None = None
        self._sum_D = torch.zeros(1, dtype=torch.float64)
        self._squares = 0.0
        self._errors = 0.0

    def add(self, y_ND: Tensor, target_ND: Tensor) -> None:
        """Adds a batch of outputs and the activations they should have been."""
        y, target = y_ND.detach().cpu().double(), target_ND.detach().cpu().double()
        if len(target) == 0:
            return
        if self._shift_D is None:
            self._shift_D = target.mean(0)
        shifted = target - self._shift_D
        self._tokens += len(target)
        self._sum_D = self._sum_D + shifted.sum(0)
        self._squares += float(shifted.square().sum())
        self._errors += float((y - target).square().sum())

    def value(self) -> float:
        """The FVU so far; NaN without tokens or where the target never varies."""
        if self._tokens == 0:
            return float("nan")
        variance = self._squares - float(self._sum_D.square().sum()) / self._tokens
        return self._errors / variance if variance > 0 else float("nan")
