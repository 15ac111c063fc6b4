"""Steering vectors: extraction from prompts, transfer through a mapper."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from server.jobs.specs.common import (
    BatchSize,
    Frozen,
    Length,
    ModelName,
    Name,
    Parameters,
    Reference,
    Sites,
    distinct,
)

DATASET_ROLES = ("positive", "negative")
"""The two datasets a vector is made from, as parameters and as roles of parents in its manifest."""


class ExtractVector(Parameters):
    """Difference in means of two datasets; ``model`` None is the served model."""

    positive: Reference
    negative: Reference
    sites: Sites
    model: ModelName | None = None
    position: Literal["last", "mean"] = "last"
    batch_size: BatchSize = 16
    max_length: Length = 256

    _distinct = field_validator("sites")(lambda sites: distinct(sites))


class RescaleToNative(Frozen):
    """Give the mapped vector the norm that ``vector`` has at the same site."""

    to: Literal["native"]
    vector: Reference


class RescaleToRms(Frozen):
    """Give the mapped vector ``fraction`` of the RMS norm of the target site's activations."""

    to: Literal["rms"]
    fraction: Annotated[float, Field(strict=True, gt=0, le=100, allow_inf_nan=False)]


class TransferVector(Parameters):
    """Carries ``vector`` through ``mapper``: ``pairs`` is the mean of f(h+) - f(h-), ``linear`` the linear part W v."""

    vector: Reference
    mapper: Reference
    rule: Literal["pairs", "linear"] = "pairs"
    rescale: Annotated[RescaleToNative | RescaleToRms, Field(discriminator="to")] | None = None


class ExtractVectorJob(Frozen):
    """``name`` becomes the name of the vector."""

    kind: Literal["extract_vector"]
    name: Name
    parameters: ExtractVector


class TransferVectorJob(Frozen):
    """``name`` becomes the name of the transferred vector."""

    kind: Literal["transfer_vector"]
    name: Name
    parameters: TransferVector
