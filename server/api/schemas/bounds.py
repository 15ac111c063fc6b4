"""Bounded building blocks of every request model, and the base class that refuses unknown fields."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from mappers.sites import Site

BODY_BYTES = 2 * 1024 * 1024
MAX_TOKENS = 1_048_576
MAX_ROWS = 128
MAX_CHOICES = 8
MAX_SETTINGS = 8
MAX_MESSAGES = 1024
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_VECTORS = 8
MAX_STRENGTH = 100.0
MAX_SITES = 64
MAX_LAYER = 1023
MAX_POSITIONS = 4096
MAX_SEED = 2**63 - 1
INLINE_CHARACTERS = 512 * 1024


class StrictModel(BaseModel):
    """Base of every request model: no unknown field, no coercion (``"5"`` is not 5, ``true`` is not 1), immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class QueryModel(BaseModel):
    """Base of query parameters taken together: no unknown one, immutable. Values arrive as text and are converted."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$", max_length=96),
    Field(description="Name or id of a stored artifact"),
]
Id = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", max_length=128),
    Field(description="Id that the server gave"),
]
ModelName = Annotated[str, Field(min_length=1, max_length=256, description="Name of the served model")]
Text = Annotated[str, Field(max_length=BODY_BYTES)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True, max_length=MAX_TOKENS)]
TokenCount = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Strength = Annotated[
    float,
    Field(ge=-MAX_STRENGTH, le=MAX_STRENGTH, allow_inf_nan=False, description="The policy may bound it more tightly"),
]


class SiteIn(StrictModel):
    """A site as JSON: ``{"layer": 3}`` is the output of decoder block 3, counted from 0."""

    layer: Annotated[int, Field(ge=0, le=MAX_LAYER)]
    point: Annotated[str, Field(pattern="^resid_post$", max_length=16)] = "resid_post"

    def site(self) -> Site:
        """The same as the one type used inside."""
        return Site(self.layer)


def _distinct(sites: list[SiteIn]) -> list[SiteIn]:
    if len(set(sites)) < len(sites):
        raise ValueError("names a site twice: list each site once")
    return sites


Sites = Annotated[list[SiteIn], Field(min_length=1, fail_fast=True, max_length=MAX_SITES), AfterValidator(_distinct)]


def misused(field: str, message: str) -> PydanticCustomError:
    """The error of a validator that looks at several fields and blames ``field``; ``message`` says the remedy."""
    return PydanticCustomError("misused_field", "{message}", {"message": message, "field": field})
