"""``safety_switch`` and ``steering``: what a request may ask to be done to its own activations.

``apply`` says where. A position is the token whose activations are changed when the model reads it; positions count
from 0 at the start of the prompt, or of the generated text.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from server.api.schemas.bounds import (
    INLINE_CHARACTERS,
    MAX_POSITIONS,
    MAX_TOKENS,
    MAX_VECTORS,
    Name,
    Sites,
    Strength,
    StrictModel,
    misused,
)
from server.types import GateSpec

Position = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
PositionFromEnd = Annotated[int, Field(ge=-MAX_TOKENS, le=MAX_TOKENS)]
Bound = Annotated[float, Field(ge=-1e6, le=1e6)]


class GeneratedSpan(StrictModel):
    """Some positions of the generated text: ``{"window": [a, b]}`` is a <= position < b, or ``{"positions": [..]}``."""

    window: Annotated[tuple[Position, Position | None], Strict(False)] | None = Field(
        default=None, description="Half open; an end of null has no end", examples=[[0, 16], [4, None]]
    )
    positions: Annotated[list[Position], Field(min_length=1, fail_fast=True, max_length=MAX_POSITIONS)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        _check_span(self.window, self.positions)
        return self


class PromptSpan(StrictModel):
    """Some positions of the prompt, as in :class:`GeneratedSpan`; listed positions may be negative, -1 is the last."""

    window: Annotated[tuple[Position, Position | None], Strict(False)] | None = Field(
        default=None, description="Half open; an end of null has no end", examples=[[0, 16], [4, None]]
    )
    positions: (
        Annotated[list[PositionFromEnd], Field(min_length=1, fail_fast=True, max_length=MAX_POSITIONS)] | None
    ) = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        _check_span(self.window, self.positions)
        return self


class ApplyIn(StrictModel):
    """Where an intervention acts; without ``apply`` it acts on every token, read or generated.

    ``match`` narrows ``prompt`` to the tokens of every occurrence of a text, and then ``generation`` is ``none``
    unless it is given.
    """

    prompt: Literal["all", "none", "last"] | PromptSpan | None = None
    generation: Literal["all", "none"] | GeneratedSpan | None = None
    match: Annotated[str, Field(min_length=1, max_length=4096)] | None = None

    @property
    def everywhere(self) -> bool:
        """Whether nothing is left out."""
        return self.prompt in (None, "all") and self.generation in (None, "all") and self.match is None


class GateIn(StrictModel):
    """Lets an intervention act only while a probe says so.

    The probe reads every token of the row, before any intervention at its site. The gate opens at a token that scores
    above ``threshold``, and closes at a later one that scores below ``release``; with ``hold`` it stays open for so
    many tokens after the last one that opened it, or forever, whatever they score.
    """

    probe: Name
    threshold: Bound | None = Field(default=None, description="Without it: the probe's own")
    release: Bound | None = Field(
        default=None, description="Without it: as far below the threshold as the probe's own are apart"
    )
    hold: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | Literal["forever"] | None = None

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.hold is not None and self.release is not None:
            raise misused("release", 'has no effect beside "hold": leave one of them out')
        if self.threshold is not None and self.release is not None and self.release > self.threshold:
            raise misused("release", 'must not be above "threshold"')
        return self

    def spec(self, probe: str | None = None) -> GateSpec:
        """For the catalog; ``probe`` is the id that the name was bound to."""
        return GateSpec(probe or self.probe, self.threshold, self.release, self.hold)


Gate = Annotated[
    Name | GateIn | None,
    Field(description="Act only while this probe fires, on this row", examples=["harmful", {"probe": "harmful"}]),
]


def gate_of(gate: str | GateIn | None) -> GateIn | None:
    """A gate that is given by the name of its probe, as the object it stands for."""
    return GateIn(probe=gate) if isinstance(gate, str) else gate


class SwitchIn(StrictModel):
    """A safety switch with its settings: ``h <- (1 - strength) h + strength f(h)``."""

    name: Name | None = Field(default=None, description="Without it: the server's default switch")
    strength: Strength = 1.0
    apply: ApplyIn | None = None
    gate: Gate = None


class InlineVectorIn(StrictModel):
    """A vector sent along: base64 of little-endian float32, as many as the model is wide."""

    data: Annotated[str, Field(min_length=4, max_length=INLINE_CHARACTERS, description="base64")]
    sites: Sites


class SteeringIn(StrictModel):
    """One steering vector. ``add``: h + a v. ``ablate``: h - a (h.v) v/|v|^2. ``clamp``: h.v/|v| held in [min, max]."""

    vector: Name | InlineVectorIn
    strength: Strength = 1.0
    unit: Literal["vector", "norm"] = Field(
        default="vector",
        description="What the strength counts: the stored vector, or the norm of the activations at its one site",
    )
    operation: Literal["add", "ablate", "clamp"] = "add"
    sites: Sites | None = Field(default=None, description="Without it: the sites of the stored vector")
    apply: ApplyIn | None = None
    min: Bound | None = None
    max: Bound | None = None
    gate: Gate = None

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        bounded = self.min is not None or self.max is not None
        if bounded != (self.operation == "clamp"):
            message = '"min" and "max" belong to the operation "clamp", which takes one or both of them'
            raise misused("min" if self.max is None else "max", message)
        if self.min is not None and self.max is not None and self.min > self.max:
            raise misused("min", 'must not be above "max"')
        if self.unit == "norm" and (self.operation != "add" or isinstance(self.vector, InlineVectorIn)):
            raise misused("unit", 'the unit "norm" is for the operation "add" with a stored vector; leave it out here')
        if isinstance(self.vector, InlineVectorIn) and self.sites is not None:
            raise misused("sites", 'the sites of an inline vector belong inside "vector"; leave them out here')
        return self


Switch = Annotated[
    bool | Name | SwitchIn | None,
    Field(
        description="true: the default switch. false: none. A name, or an object, for another switch or other settings",
        examples=[True, "safe", {"name": "safe", "strength": 0.5, "apply": {"prompt": "last"}}],
    ),
]
Steering = Annotated[list[SteeringIn], Field(fail_fast=True, max_length=MAX_VECTORS)] | None


class InterventionFields(StrictModel):
    """What every request that generates can have done to it, in this order: the switch, then each vector."""

    safety_switch: Switch = None
    steering: Steering = Field(
        default=None,
        examples=[[{"vector": "refusal", "strength": 1.5, "sites": [{"layer": 3}], "apply": {"generation": "all"}}]],
    )


class GenerationPatch(InterventionFields):
    """Body of ``PATCH /v1/generations/{id}``: each field given replaces that part from the next token on."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.safety_switch is None and self.steering is None:
            raise ValueError("give safety_switch, steering or both; [] and false switch off")
        return self


def _check_span(window: tuple[int, int | None] | None, positions: list[int] | None) -> None:
    if (window is None) == (positions is None):
        raise ValueError('give either "window" or "positions"')
    if window is not None and window[1] is not None and window[1] <= window[0]:
        raise misused("window", "a window [a, b] takes the positions a <= position < b, so b must be above a")
