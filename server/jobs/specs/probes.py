"""Probes: what gates read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from server.jobs.specs.fields import (
    BatchSize,
    Fraction,
    Length,
    Parameters,
    Reference,
    Seed,
    Sites,
    Submission,
    distinct,
)


class TrainProbe(Parameters):
    """A logistic probe that tells ``positive`` prompts from ``negative`` ones in the served model.

    Of ``sites`` the one that separates held-out prompts best is kept. ``false_positive_rate`` bounds the share of
    held-out negatives that fire; null takes the threshold of Youden's index. ``hysteresis`` is how far below it a gate
    lets go, in standard deviations of the negatives' scores.
    """

    positive: Reference
    negative: Reference
    sites: Sites
    tokens: Literal["all", "last"] = "all"
    l2: Annotated[float, Field(strict=True, gt=0, le=1e6, allow_inf_nan=False)] = 1e-2
    false_positive_rate: Fraction | None = None
    hysteresis: Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)] = 1.0
    batch_size: BatchSize = 16
    max_length: Length = 256
    seed: Seed = 0
    validation_fraction: Annotated[float, Field(strict=True, ge=0.05, le=0.9, allow_inf_nan=False)] = 0.4

    _distinct = field_validator("sites")(lambda sites: distinct(sites))


class TrainProbeJob(Submission):
    """``name`` becomes the name of the probe."""

    kind: Literal["train_probe"]
    parameters: TrainProbe
