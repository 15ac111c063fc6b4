"""Fits of mappers: a safety switch for the served model, a mapper from another model to it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from server.jobs.specs.common import (
    BatchSize,
    Count,
    Fraction,
    Frozen,
    Hidden,
    LearningRate,
    Length,
    MaskIn,
    ModelName,
    Name,
    Parameters,
    Reference,
    Seed,
    SiteIn,
    Sites,
    Weight,
    distinct,
)

MapperKind = Literal["autoencoder", "affine", "ridge"]

_TRAINED_ONLY = frozenset({"loss", "steps", "learning_rate"})
"""A closed form still reads the data in batches."""


class LossWeights(Frozen):
    """Weights of the summed loss; a term left out has weight 0."""

    kl: Weight = 0.0
    mse: Weight = 0.0

    @model_validator(mode="after")
    def _some_term(self) -> Self:
        if self.kl == 0 and self.mse == 0:
            raise ValueError("at least one of kl and mse must be above 0")
        return self


class Fit(Parameters):
    """What every fit of a mapper takes."""

    mapper: MapperKind = "autoencoder"
    hidden: Hidden | None = None
    ridge: Annotated[float, Field(strict=True, ge=0, le=1e6, allow_inf_nan=False)] = 1e-2
    loss: LossWeights
    steps: Count = 300
    batch_size: BatchSize = 16
    learning_rate: LearningRate = 1e-3
    max_length: Length = 256
    seed: Seed = 0
    validation_fraction: Fraction = 0.1

    @property
    def without_effect(self) -> frozenset[str]:
        """Parameters that mean nothing to the chosen mapper."""
        if self.mapper == "ridge":
            return _TRAINED_ONLY | {"hidden"}
        return frozenset({"ridge"} if self.mapper == "autoencoder" else {"ridge", "hidden"})

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        if idle := sorted(self.without_effect & given):
            raise ValueError(f"mapper {self.mapper!r} has no use for {', '.join(idle)}: leave it out")
        return self


class TrainSwitch(Fit):
    """Fits a mapper from the served model to ``base`` at each of ``sites`` of the served model.

    ``dataset`` holds prompts; rows without an answer are answered greedily by the base model first.
    """

    base: ModelName
    dataset: Reference
    sites: Sites
    residual: bool = True
    loss: LossWeights = LossWeights(kl=1.0, mse=0.1)
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=4096)] = 64

    _distinct = field_validator("sites")(lambda sites: distinct(sites))


class TrainMapper(Fit):
    """Fits a mapper from ``source`` to the served model on the same texts, tokens paired by ``alignment``.

    ``batch_size`` counts pairs of tokens, not texts.
    """

    source: ModelName
    source_site: SiteIn
    target_site: SiteIn
    dataset: Reference
    mapper: MapperKind = "ridge"
    residual: bool = False
    batch_size: Annotated[int, Field(strict=True, ge=1, le=65_536, description="token pairs a step")] = 1024
    loss: LossWeights = LossWeights(mse=1.0)
    alignment: Literal["offsets", "last", "position"] = "offsets"
    mask: MaskIn = MaskIn()

    @model_validator(mode="after")
    def _only_mse(self) -> Self:
        if self.loss.kl > 0:
            raise ValueError("loss.kl exists for train_switch only: a mapper between two models is fitted by mse")
        return self


class TrainSwitchJob(Frozen):
    """``name`` becomes the name of the switch."""

    kind: Literal["train_switch"]
    name: Name
    parameters: TrainSwitch


class TrainMapperJob(Frozen):
    """``name`` becomes the name of the mapper."""

    kind: Literal["train_mapper"]
    name: Name
    parameters: TrainMapper
