"""Fits of mappers: a safety switch for the served model, a mapper from another model to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from mappers.mapper_config import MapperKind
from server.jobs.specs.fields import (
    BatchSize,
    Count,
    Fraction,
    Frozen,
    Hidden,
    LearningRate,
    Length,
    MaskIn,
    ModelName,
    Parameters,
    Reference,
    Seed,
    SiteIn,
    Sites,
    Submission,
    Weight,
    distinct,
)

CLOSED_FORMS = frozenset({"ridge", "procrustes", "low_rank"})
"""Kinds of mapper that are solved for, not trained."""

_VALIDATED_ONLY = frozenset({"validate_every", "patience"})
_TRAINED_ONLY = _VALIDATED_ONLY | {
    "preset", "loss", "mse_form", "steps", "epochs", "accumulate", "learning_rate", "schedule", "weight_decay",
    "mixed_precision",
}  # fmt: skip
"""A closed form still reads the data in batches."""

_KINDS_WITH: Mapping[str, frozenset[str]] = {
    "ridge": frozenset({"ridge", "low_rank"}),
    "rank": frozenset({"low_rank"}),
    "scale": frozenset({"procrustes"}),
    "hidden": frozenset({"autoencoder"}),
}


_RIVALS = {"steps": "epochs", "batch_size": "batch_texts"}
"""What is given beside a preset, and what of the preset it takes the place of."""


class LossWeights(Frozen):
    """Weights of the summed loss; a term left out has weight 0."""

    kl: Weight = 0.0
    mse: Weight = 0.0
    cosine: Weight = 0.0

    @model_validator(mode="after")
    def _some_term(self) -> Self:
        if self.kl == 0 and self.mse == 0 and self.cosine == 0:
            raise ValueError("at least one of kl, mse and cosine must be above 0")
        return self


class AugmentIn(Frozen):
    """Tokens without meaning, put among those of the prompts: see :class:`mappers.augmentation.Augment`."""

    share: Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)] = 0.8
    tokens: Annotated[int, Field(strict=True, ge=1, le=1024)] = 8


class AttackIn(Frozen):
    """Gradient ascent on the inserted tokens' embeddings: see :class:`mappers.attack.Attack`."""

    radius: Annotated[float, Field(strict=True, gt=0, le=10, allow_inf_nan=False)] = 1.0
    steps: Annotated[int, Field(strict=True, ge=1, le=100)] = 3


Presets = Mapping[str, Mapping[str, Any]]

_PAPER: Mapping[str, Any] = {
    "mapper": "autoencoder",
    "residual": False,
    "loss": LossWeights(mse=1.0),
    "mse_form": "plain",
    "epochs": 3,
    "accumulate": 4,
    "learning_rate": 1e-4,
    "schedule": "constant",
    "weight_decay": 0.01,
    "max_length": 720,
    "validation_fraction": 0.1,
}
"""arXiv 2503.04429, section 3, whose weight decay and schedule are not stated: torch's own for AdamW, and none."""


class Fit(Parameters):
    """What every fit of a mapper takes. ``preset`` sets other defaults; what is given beside it wins."""

    presets: ClassVar[Presets]

    preset: Literal["paper"] | None = None
    mapper: MapperKind = "autoencoder"
    hidden: Hidden | None = None
    rank: Hidden | None = None
    scale: Annotated[bool, Field(strict=True)] = True
    ridge: Annotated[float, Field(strict=True, ge=0, le=1e6, allow_inf_nan=False)] = 1e-2
    loss: LossWeights
    mse_form: Literal["relative", "plain"] = "relative"
    steps: Count = 300
    epochs: Annotated[int, Field(strict=True, ge=1, le=1000)] | None = None
    batch_size: BatchSize = 16
    accumulate: Annotated[int, Field(strict=True, ge=1, le=1024)] = 1
    learning_rate: LearningRate = 1e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = 0.0
    mixed_precision: Annotated[bool, Field(strict=True)] = False
    max_length: Length = 256
    seed: Seed = 0
    validation_fraction: Fraction = 0.1
    validate_every: Count = 50
    patience: Count | None = None

    @property
    def without_effect(self) -> frozenset[str]:
        """Parameters that mean nothing beside the others."""
        return frozenset(self._idle())

    def _idle(self) -> dict[str, str]:
        """Each parameter that means nothing, and beside what."""
        mapper = f"mapper {self.mapper!r}"
        idle = {name: mapper for name, kinds in _KINDS_WITH.items() if self.mapper not in kinds}
        if self.mapper in CLOSED_FORMS:
            return idle | dict.fromkeys(_TRAINED_ONLY, mapper)
        if self.epochs is not None:
            idle["steps"] = "epochs"
        if self.loss.mse == 0:
            idle["mse_form"] = "a loss without mse"
        if self.validation_fraction == 0:
            idle |= dict.fromkeys(_VALIDATED_ONLY, "validation_fraction 0")
        return idle

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: Any) -> Any:
        preset = given.get("preset") if isinstance(given, dict) else None
        if not isinstance(preset, str) or preset not in cls.presets:
            return given
        beaten = {rival for name, rival in _RIVALS.items() if name in given}
        return {name: value for name, value in cls.presets[preset].items() if name not in beaten} | given

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        preset = {} if self.preset is None else self.presets[self.preset]
        given = {name: getattr(self, name) for name in self.model_fields_set}
        chosen = {name for name, value in given.items() if value is not None and preset.get(name) != value}
        if idle := [f"{name} beside {why}" for name, why in sorted(self._idle().items()) if name in chosen]:
            raise ValueError(f"without effect: {', '.join(idle)}; leave it out")
        if self.mapper == "low_rank" and self.rank is None:
            raise ValueError("mapper 'low_rank' needs rank, the number of directions it keeps")
        return self


class TrainSwitch(Fit):
    """Fits a mapper from the served model to ``base`` at each of ``sites`` of the served model.

    ``dataset`` holds prompts; rows without an answer are answered greedily by the base model first. ``augment`` and
    ``attack`` are for triggers that nobody knows: without them a switch holds against what the dataset shows.
    """

    presets: ClassVar[Presets] = {"paper": {**_PAPER, "batch_size": 16}}

    base: ModelName
    dataset: Reference
    sites: Sites
    residual: bool = True
    loss: LossWeights = LossWeights(kl=1.0, mse=0.1)
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=4096)] = 64
    augment: AugmentIn | None = None
    attack: AttackIn | None = None

    def _idle(self) -> dict[str, str]:
        idle = super()._idle()
        return idle | {"attack": f"mapper {self.mapper!r}"} if self.mapper in CLOSED_FORMS else idle

    @model_validator(mode="after")
    def _attack_needs(self) -> Self:
        if self.attack is not None and self.augment is None:
            raise ValueError("attack moves the tokens that augment inserts: give augment too, or leave attack out")
        if self.attack is not None and self.loss.kl == 0:
            raise ValueError("attack is a part of the loss kl: give kl a weight, or leave attack out")
        return self

    _distinct = field_validator("sites")(lambda sites: distinct(sites))


class TrainMapper(Fit):
    """Fits a mapper from ``source`` to the served model on the same texts, tokens paired by ``alignment``.

    ``batch_size`` counts pairs of tokens; ``batch_texts`` in its place makes a batch as many pairs as that many texts
    have on average.
    """

    presets: ClassVar[Presets] = {"paper": {**_PAPER, "batch_texts": 16, "alignment": "position"}}

    source: ModelName
    source_site: SiteIn
    target_site: SiteIn
    dataset: Reference
    mapper: MapperKind = "ridge"
    residual: bool = False
    batch_size: Annotated[int, Field(strict=True, ge=1, le=65_536, description="token pairs a step")] = 1024
    batch_texts: BatchSize | None = None
    loss: LossWeights = LossWeights(mse=1.0)
    alignment: Literal["offsets", "last", "position"] = "offsets"
    mask: MaskIn = MaskIn()

    def _idle(self) -> dict[str, str]:
        idle = super()._idle()
        if self.mapper in CLOSED_FORMS:
            return idle | dict.fromkeys(("batch_size", "batch_texts"), f"mapper {self.mapper!r}")
        return idle if self.batch_texts is None else idle | {"batch_size": "batch_texts"}

    @model_validator(mode="after")
    def _only_activations(self) -> Self:
        if self.loss.kl > 0:
            raise ValueError("loss.kl exists for train_switch only: a mapper between models is fitted on activations")
        return self


class TrainSwitchJob(Submission):
    """``name`` becomes the name of the switch."""

    kind: Literal["train_switch"]
    parameters: TrainSwitch


class TrainMapperJob(Submission):
    """``name`` becomes the name of the mapper."""

    kind: Literal["train_mapper"]
    parameters: TrainMapper
