"""What the parameters of all kinds of job are made of: bounded types, sites, and the base of every model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

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


class Frozen(BaseModel):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameters(Frozen):
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


class Submission(Frozen):
    """What every job has: ``name`` becomes the name of what it makes.

    Of the jobs that wait, those of higher ``priority`` come first, then those submitted earlier.
    """

    name: Name
    priority: Annotated[int, Field(strict=True, ge=-10, le=10)] = 0


class SiteIn(Frozen):
    """A site as JSON: ``{"layer": 3}``."""

    layer: Annotated[int, Field(strict=True, ge=0, le=1023)]
    point: Literal["resid_post"] = "resid_post"

    def site(self) -> Site:
        """The same as the one type used inside."""
        return Site(self.layer, self.point)


class MaskIn(Frozen):
    """Tokens to leave out: ``massive`` those with a norm above so many medians of their site, and special tokens."""

    massive: Annotated[float, Field(strict=True, gt=1, le=1e6, allow_inf_nan=False)] | None = None
    special_tokens: Annotated[bool, Field(strict=True)] = False


Sites = Annotated[tuple[SiteIn, ...], Field(min_length=1, max_length=64)]


def distinct(sites: tuple[SiteIn, ...]) -> tuple[SiteIn, ...]:
    """The sites as they are; raises ValueError where one is named twice."""
    if len(set(sites)) != len(sites):
        raise ValueError("names a site twice: list each site once")
    return sites
