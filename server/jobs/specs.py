"""What a client may ask of a job: ``{"kind", "name", "parameters"}``, discriminated by ``kind``. No torch.

Models are named only by names the operator gave at start, data and vectors by artifact name or id: nothing here is a
path. A parameter that would have no effect with the chosen mapper is refused, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    field_validator,
    model_serializer,
    model_validator,
)

from mappers.manifest import NAME_PATTERN
from mappers.sites import Site

Name = Annotated[str, Field(max_length=96, pattern=NAME_PATTERN)]
Reference = Annotated[str, Field(min_length=1, max_length=96, description="name or id of an artifact")]
ModelName = Annotated[str, Field(min_length=1, max_length=200, description="name the operator gave to a model")]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
BatchSize = Annotated[int, Field(strict=True, ge=1, le=1024)]
Length = Annotated[int, Field(strict=True, ge=2, le=131_072)]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
LearningRate = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(strict=True, ge=0, le=1000, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=0.5, allow_inf_nan=False)]
Hidden = Annotated[int, Field(strict=True, ge=1, le=65_536)]
DATASET_ROLES = ("positive", "negative")
"""The two datasets a vector is made from, as parameters and as roles of parents in its manifest."""

MapperKind = Literal["autoencoder", "affine", "ridge"]

_TRAINED_ONLY = frozenset({"loss", "steps", "learning_rate"})
"""A closed form still reads the data in batches."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Parameters(_Frozen):
    """Parameters of one kind of job."""

    @property
    def without_effect(self) -> frozenset[str]:
        """Parameters that mean nothing beside the others."""
        return frozenset()

    @model_serializer(mode="wrap")
    def _effective(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what has no effect, so that what was written reads back as the same job."""
        return {name: value for name, value in handler(self).items() if name not in self.without_effect}

    def stored(self) -> dict[str, Any]:
        """As JSON, defaults filled in, without parameters that have no effect: reads back as the same job."""
        return self.model_dump(mode="json")


class SiteIn(_Frozen):
    """A site as JSON: ``{"layer": 3}``."""

    layer: Annotated[int, Field(strict=True, ge=0, le=1023)]
    point: Literal["resid_post"] = "resid_post"

    def site(self) -> Site:
        """The same as the one type used inside."""
        return Site(self.layer, self.point)


Sites = Annotated[tuple[SiteIn, ...], Field(min_length=1, max_length=64)]


class LossWeights(_Frozen):
    """Weights of the summed loss; a term left out has weight 0."""

    kl: Weight = 0.0
    mse: Weight = 0.0

    @model_validator(mode="after")
    def _some_term(self) -> Self:
        if self.kl == 0 and self.mse == 0:
            raise ValueError("at least one of kl and mse must be above 0")
        return self


class _Fit(_Parameters):
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


class TrainSwitch(_Fit):
    """Fits a mapper from the served model to ``base`` at each of ``sites`` of the served model.

    ``dataset`` holds prompts; rows without an answer are answered greedily by the base model first.
    """

    base: ModelName
    dataset: Reference
    sites: Sites
    residual: bool = True
    loss: LossWeights = LossWeights(kl=1.0, mse=0.1)
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=4096)] = 64

    _distinct = field_validator("sites")(lambda sites: _distinct(sites))


class TrainMapper(_Fit):
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

    @model_validator(mode="after")
    def _only_mse(self) -> Self:
        if self.loss.kl > 0:
            raise ValueError("loss.kl exists for train_switch only: a mapper between two models is fitted by mse")
        return self


class ExtractVector(_Parameters):
    """Difference in means of two datasets; ``model`` None is the served model."""

    positive: Reference
    negative: Reference
    sites: Sites
    model: ModelName | None = None
    position: Literal["last", "mean"] = "last"
    batch_size: BatchSize = 16
    max_length: Length = 256

    _distinct = field_validator("sites")(lambda sites: _distinct(sites))


class RescaleToNative(_Frozen):
    """Give the mapped vector the norm that ``vector`` has at the same site."""

    to: Literal["native"]
    vector: Reference


class RescaleToRms(_Frozen):
    """Give the mapped vector ``fraction`` of the RMS norm of the target site's activations."""

    to: Literal["rms"]
    fraction: Annotated[float, Field(strict=True, gt=0, le=100, allow_inf_nan=False)]


class TransferVector(_Parameters):
    """Carries ``vector`` through ``mapper``: ``pairs`` is the mean of f(h+) - f(h-), ``linear`` the linear part W v."""

    vector: Reference
    mapper: Reference
    rule: Literal["pairs", "linear"] = "pairs"
    rescale: Annotated[RescaleToNative | RescaleToRms, Field(discriminator="to")] | None = None


class TrainSwitchJob(_Frozen):
    """``name`` becomes the name of the switch."""

    kind: Literal["train_switch"]
    name: Name
    parameters: TrainSwitch


class TrainMapperJob(_Frozen):
    """``name`` becomes the name of the mapper."""

    kind: Literal["train_mapper"]
    name: Name
    parameters: TrainMapper


class ExtractVectorJob(_Frozen):
    """``name`` becomes the name of the vector."""

    kind: Literal["extract_vector"]
    name: Name
    parameters: ExtractVector


class TransferVectorJob(_Frozen):
    """``name`` becomes the name of the transferred vector."""

    kind: Literal["transfer_vector"]
    name: Name
    parameters: TransferVector


JobSpec = Annotated[TrainSwitchJob | TrainMapperJob | ExtractVectorJob | TransferVectorJob, Field(discriminator="kind")]
JOB_SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)


def _distinct(sites: tuple[SiteIn, ...]) -> tuple[SiteIn, ...]:
    if len(set(sites)) != len(sites):
        raise ValueError("names a site twice: list each site once")
    return sites
