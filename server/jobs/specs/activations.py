"""Activations kept on disk: what several fits are to read without running the model again."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from server.jobs.specs.fields import (
    BatchSize,
    Length,
    MaskIn,
    ModelName,
    Parameters,
    Reference,
    Sites,
    Submission,
    distinct,
)


class CollectActivations(Parameters):
    """Reads ``dataset``, answers included, with ``model`` (None is the served model) and keeps the tokens at ``sites``.

    ``shard_mib`` bounds the tensors of one file.
    """

    dataset: Reference
    sites: Sites
    model: ModelName | None = None
    dtype: Literal["float16", "float32"] = "float16"
    mask: MaskIn = MaskIn()
    batch_size: BatchSize = 16
    max_length: Length = 256
    shard_mib: Annotated[int, Field(strict=True, ge=1, le=2048)] = 128

    _distinct = field_validator("sites")(lambda sites: distinct(sites))


class CollectActivationsJob(Submission):
    """``name`` becomes the name of the activations."""

    kind: Literal["collect_activations"]
    parameters: CollectActivations
