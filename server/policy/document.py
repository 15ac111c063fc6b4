"""What an operator writes down: the policy of a server, and the limits of one key. Strict and bounded."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from mappers.manifest import NAME_PATTERN
from server.types import GateSpec

MAX_RULES = 256
MAX_MODELS = 64

Reference = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=96), Field(description="Name or id")]
ProfileName = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=96)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Bound = Annotated[float, Field(ge=-1000, le=1000)]
References = Annotated[list[Reference], Field(fail_fast=True, max_length=MAX_RULES)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StrengthRange(_Part):
    """Strengths from ``min`` to ``max``, either of them open. Switched off counts as 0."""

    min: Bound | None = Field(default=None, description="Floor: nobody may go below it")
    max: Bound | None = Field(default=None, description="Ceiling")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError('give "min", "max" or both')
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError('"min" must not be above "max"')
        return self


class Limits(_Part):
    """Bounds of strength: ``strengths`` for a switch or vector by name or id, ``max_strength`` for all (absolute)."""

    strengths: Annotated[dict[Reference, StrengthRange], Field(max_length=MAX_RULES)] = Field(default_factory=dict)
    max_strength: Annotated[float, Field(ge=0, le=1000)] | None = None

    def range_of(self, names: Set[str]) -> StrengthRange | None:
        """The bounds that hold for what goes by ``names``: the narrowest of all that match."""
        found = [bounds for name, bounds in self.strengths.items() if name in names]
        floors = [bounds.min for bounds in found if bounds.min is not None]
        ceilings = [bounds.max for bounds in found if bounds.max is not None]
        if not found:
            return None
        # Two rules may contradict each other; then nothing fits, which is for the check to say.
        return StrengthRange.model_construct(min=max(floors, default=None), max=min(ceilings, default=None))


NO_LIMITS = Limits()


class NameRules(_Part):
    """Which artifacts may be used: those of ``allowed`` (null: all) that ``denied`` does not name."""

    allowed: References | None = None
    denied: References = Field(default_factory=list)

    @property
    def any(self) -> bool:
        """Whether there is a rule at all."""
        return self.allowed is not None or bool(self.denied)


class GateRule(_Part):
    """The gate that an artifact has to have, as a request would write it."""

    probe: Reference
    threshold: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    release: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    hold: Annotated[int, Field(ge=0, le=2**20)] | Literal["forever"] | None = None

    def is_met_by(self, gate: GateSpec, probes: Set[str]) -> bool:
        """Whether ``gate``, whose probe goes by the names ``probes``, is this one, with these very settings."""
        asked = (self.threshold, self.release, self.hold)
        return self.probe in probes and (gate.threshold, gate.release, gate.hold) == asked


class PolicyDocument(_Part):
    """The rules for everybody; a key can only be narrowed further, by its own limits."""

    default_profiles: Annotated[dict[ModelName, ProfileName | None], Field(max_length=MAX_MODELS)] = Field(
        default_factory=dict,
        description="Served model to the profile of every request that says nothing else; null for none. Once one "
        "model is named, a model that is not named answers nobody",
        examples=[{"qwen2-medium-backdoor": "guarded"}],
    )
    switches: NameRules = NameRules()
    vectors: NameRules = NameRules()
    inline_vectors: bool | None = Field(
        default=None, description="Vectors sent with a request. null: unless `vectors.allowed` is given"
    )
    gates: Annotated[dict[Reference, GateRule], Field(max_length=MAX_RULES)] = Field(
        default_factory=dict,
        description="Switch or vector to the gate without which nobody may use it, nor with another",
        examples=[{"refusal": {"probe": "harmful"}}],
    )
    limits: Limits = Limits()

    @property
    def inline_allowed(self) -> bool:
        """Whether requests may bring their own vectors."""
        return self.vectors.allowed is None if self.inline_vectors is None else self.inline_vectors


NO_RULES = PolicyDocument()


def named(limits: Iterable[Limits], document: PolicyDocument) -> bool:
    """Whether any rule names an artifact, so that requests have to be matched against all its names."""
    ruled = document.switches.any or document.vectors.any or bool(document.gates)
    return ruled or any(one.strengths for one in limits)
