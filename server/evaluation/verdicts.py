"""Verdicts over prompts as text of 0 and 1 (compact in JSON), and rates with intervals over several seeds of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mappers.errors import DataError
from mappers.evaluation import Rate

_CONFIDENCE = 0.95
_RESAMPLES = 4000


def pack(verdicts: Iterable[bool]) -> str:
    """``[True, False]`` as ``"10"``."""
    return "".join("1" if verdict else "0" for verdict in verdicts)


def share(verdicts: str) -> float:
    """The share of ones; raises DataError for no verdicts at all."""
    if not verdicts:
        raise DataError("a rate needs at least one text")
    return verdicts.count("1") / len(verdicts)


def rate_over_seeds(seeds: Sequence[str]) -> Rate:
    """Mean over seeds of the share of ones, with a 95 % percentile bootstrap over prompts within each seed.

    ``count`` is the number of prompts of all seeds. Seeds are not resampled: three of them say little about a fourth.
    """
    values = [share(verdicts) for verdicts in seeds]
    generator = np.random.default_rng(0)
    drawn = np.mean(
        [
            generator.binomial(len(verdicts), value, _RESAMPLES) / len(verdicts)
            for verdicts, value in zip(seeds, values, strict=True)
        ],
        axis=0,
    )
    low, high = np.quantile(drawn, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Rate(float(np.mean(values)), float(low), float(high), sum(map(len, seeds)))


def percent(rate: Rate | float) -> str:
    """``98.1 % (96.2 to 99.5)``; a plain number without an interval."""
    if isinstance(rate, float):
        return f"{100 * rate:.1f} %"
    return f"{100 * rate.value:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"
