"""Steering vectors: extraction from prompts, transfer through a mapper, each with an optional check of behaviour."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from mappers.contrast import Trigger
from mappers.manifest import Manifest
from mappers.refusals import REFUSALS
from server.jobs.specs.fields import (
    BatchSize,
    Fraction,
    Frozen,
    Length,
    ModelName,
    Parameters,
    Reference,
    Seed,
    SiteIn,
    Sites,
    Submission,
    distinct,
)

DATASET_ROLES = ("positive", "negative")
"""The two datasets a vector is made from, as parameters and as roles of parents in its manifest."""

PROMPTS_ROLE = "prompts"
"""The one dataset of clean prompts that a trigger makes the positive ones of, likewise."""


def dataset_parents(vector: Manifest) -> dict[str, str]:
    """Role -> id of the datasets a vector was extracted from; empty for one that was imported or transferred."""
    return {parent.role: parent.id for parent in vector.parents if parent.role in (*DATASET_ROLES, PROMPTS_ROLE)}


Method = Literal["difference_in_means", "actadd", "pca", "logistic"]
NewTokens = Annotated[int, Field(strict=True, ge=1, le=4096)]
Signed = Annotated[float, Field(strict=True, ge=-100, le=100, allow_inf_nan=False)]
Phrase = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class ExtractVector(Parameters):
    """A direction from contrasting prompts: ``positive`` and ``negative``, or ``prompts`` with and without ``trigger``.

    ``model`` None is the served model.
    """

    method: Method = "difference_in_means"
    positive: Reference | None = None
    negative: Reference | None = None
    prompts: Reference | None = None
    trigger: Trigger | None = None
    sites: Sites
    model: ModelName | None = None
    position: Literal["last", "mean", "answer"] = "last"
    l2: Annotated[float, Field(strict=True, gt=0, le=1e6, allow_inf_nan=False)] = 1e-2
    batch_size: BatchSize = 16
    max_length: Length = 256

    _distinct = field_validator("sites")(lambda sites: distinct(sites))

    @property
    def without_effect(self) -> frozenset[str]:
        """Parameters that mean nothing to the method."""
        idle = {"position"} if self.method == "actadd" else set()
        return frozenset(idle if self.method == "logistic" else idle | {"l2"})

    @property
    def datasets(self) -> dict[str, str]:
        """Role -> reference of the datasets that are read."""
        named = {role: getattr(self, role) for role in (*DATASET_ROLES, PROMPTS_ROLE)}
        return {role: reference for role, reference in named.items() if reference is not None}

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if idle := sorted(self.without_effect & self.model_fields_set):
            raise ValueError(f"method {self.method!r} has no use for {', '.join(idle)}: leave it out")
        given = {*self.datasets, *(("trigger",) if self.trigger else ())}
        if given not in ({"positive", "negative"}, {"prompts", "trigger"}):
            raise ValueError("give either positive and negative, or prompts and trigger")
        return self


class ExtractRefusalDirection(Parameters):
    """Chooses a refusal direction among all layers and the last ``positions`` tokens (Arditi et al. 2024).

    ``model`` None is the served model. ``max_kl`` in nats; ``max_layer`` is a share of the depth.
    """

    harmful: Reference
    harmless: Reference
    model: ModelName | None = None
    positions: Annotated[int, Field(strict=True, ge=1, le=16)] = 4
    refusals: Annotated[tuple[Phrase, ...], Field(min_length=1, max_length=64)] = REFUSALS
    max_kl: Annotated[float, Field(strict=True, gt=0, le=100, allow_inf_nan=False)] = 0.1
    max_layer: Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)] = 0.8
    validation_fraction: Annotated[Fraction, Field(gt=0)] = 0.2
    max_new_tokens: NewTokens = 32
    seed: Seed = 0
    batch_size: BatchSize = 16
    max_length: Length = 256


class RescaleToNative(Frozen):
    """Give the mapped vector the norm that ``vector`` has at the same site."""

    to: Literal["native"]
    vector: Reference


class RescaleToRms(Frozen):
    """Give the mapped vector ``fraction`` of the RMS norm of the target site's activations."""

    to: Literal["rms"]
    fraction: Annotated[float, Field(strict=True, gt=0, le=100, allow_inf_nan=False)]


class Check(Frozen):
    """Greedy answers to ``dataset`` at each of ``strengths``, and how many of them hold ``marker``."""

    dataset: Reference
    marker: Phrase
    strengths: Annotated[tuple[Signed, ...], Field(min_length=1, max_length=16)]
    max_new_tokens: NewTokens = 32
    batch_size: BatchSize = 16

    @field_validator("strengths")
    @classmethod
    def _each_once(cls, strengths: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(strengths)) < len(strengths) or 0.0 in strengths:
            raise ValueError("name each strength once and leave 0 out: the model as it is is always measured")
        return strengths


class VectorCheck(Check):
    """Compares unsteered, native (where one is named), mapped and random vectors, the last of the mapped one's norm."""

    seed: Seed = 0


class TransferVector(Parameters):
    """Carries ``vector`` through ``mapper``.

    ``pairs``: the vector's method over f(h+) and f(h-); ``linear``: W v; ``jacobian``: J_f(mean of the prompts) v.
    ``native`` is a vector of the target model to compare with; ``rescale`` to one names it already.
    """

    vector: Reference
    mapper: Reference
    rule: Literal["pairs", "linear", "jacobian"] = "pairs"
    rescale: Annotated[RescaleToNative | RescaleToRms, Field(discriminator="to")] | None = None
    native: Reference | None = None
    check: VectorCheck | None = None

    @property
    def compared(self) -> str | None:
        """The native vector, wherever it is named."""
        return self.rescale.vector if isinstance(self.rescale, RescaleToNative) else self.native

    @model_validator(mode="after")
    def _one_native(self) -> Self:
        if self.native is not None and isinstance(self.rescale, RescaleToNative):
            raise ValueError("rescale names the native vector already: leave native out")
        return self


class SitePair(Frozen):
    """A site of the source model's switch and the served model's site it is carried to."""

    source: SiteIn
    target: SiteIn


class TransferSwitch(Parameters):
    """Makes a switch of a reference model one of the served model.

    Affine maps are fitted both ways, in closed form, on the texts of ``dataset`` for each pair of ``sites``. What the
    switch changes is carried over ``strength`` times.
    """

    switch: Reference
    dataset: Reference
    sites: Annotated[tuple[SitePair, ...], Field(min_length=1, max_length=16)]
    strength: Annotated[float, Field(strict=True, gt=0, le=100, allow_inf_nan=False)] = 1.0
    alignment: Literal["offsets", "last", "position"] = "offsets"
    ridge: Annotated[float, Field(strict=True, ge=0, le=1e6, allow_inf_nan=False)] = 1e-3
    validation_fraction: Fraction = 0.1
    seed: Seed = 0
    max_length: Length = 256
    check: Check | None = None

    @field_validator("sites")
    @classmethod
    def _each_once(cls, sites: tuple[SitePair, ...]) -> tuple[SitePair, ...]:
        distinct(tuple(pair.source for pair in sites))
        distinct(tuple(pair.target for pair in sites))
        return sites


class ExtractVectorJob(Submission):
    """``name`` becomes the name of the vector."""

    kind: Literal["extract_vector"]
    parameters: ExtractVector


class TransferVectorJob(Submission):
    """``name`` becomes the name of the transferred vector."""

    kind: Literal["transfer_vector"]
    parameters: TransferVector


class ExtractRefusalDirectionJob(Submission):
    """``name`` becomes the name of the vector."""

    kind: Literal["extract_refusal_direction"]
    parameters: ExtractRefusalDirection


class TransferSwitchJob(Submission):
    """``name`` becomes the name of the served model's switch."""

    kind: Literal["transfer_switch"]
    parameters: TransferSwitch
