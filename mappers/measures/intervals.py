"""Percentile bootstrap intervals: of paired differences, and of a mean over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mappers.errors import DataError


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over ``count`` values with its bootstrap interval."""

    value: float
    low: float
    high: float
    count: int


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean of ``first[i] - second[i]``, where both are scores of the same question; pairs are resampled together.

    Raises DataError without values or for different numbers of them.
    """
    if len(first) != len(second):
        raise DataError(f"paired scores need one of each: got {len(first)} and {len(second)}")
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return mean_over_seeds([difference], confidence=confidence, resamples=resamples, seed=seed)


def mean_over_seeds(
    runs: Sequence[Sequence[float] | NDArray[np.float64]],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean of the means of the runs, one run a seed, each a list of scores.

    Both levels are resampled: seeds with replacement, then the scores within each. With few seeds the interval is too
    narrow rather than too wide. Raises DataError where there is no run, or one without scores.
    """
    scores = [np.asarray(run, dtype=np.float64) for run in runs]
    if not scores or any(run.size == 0 for run in scores):
        raise DataError("a mean needs at least one run, and every run at least one score")
    rng = np.random.default_rng(seed)
    # A run's resampled mean: the counts of a multinomial are how often each score is drawn.
    means = np.stack(
        [rng.multinomial(run.size, np.full(run.size, 1 / run.size), size=resamples) @ run / run.size for run in scores]
    )
    chosen = rng.integers(len(scores), size=(len(scores), resamples))
    drawn = means[chosen, np.arange(resamples)].mean(0)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(
        float(np.mean([run.mean() for run in scores])), float(low), float(high), sum(run.size for run in scores)
    )
