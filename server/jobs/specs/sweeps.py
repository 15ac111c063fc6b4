"""The choice of a site: behaviour by layer and strength."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from server.jobs.specs.fields import (
    BatchSize,
    Frozen,
    Length,
    ModelName,
    Parameters,
    Reference,
    Seed,
    Sites,
    Submission,
    distinct,
)

Strength = Annotated[float, Field(strict=True, ge=-1000, le=1000, allow_inf_nan=False)]
Ridge = Annotated[float, Field(strict=True, ge=0, le=1e6, allow_inf_nan=False)]
Limit = Annotated[int, Field(strict=True, ge=2, le=10_000)]

_SWITCH_GRID = (0.25, 0.5, 0.75, 1.0)
_ABLATE_GRID = (0.5, 1.0, 1.5)
_ADD_GRID = {"vector": (0.5, 1.0, 1.5, 2.0, 3.0), "norm": (0.1, 0.2, 0.4, 0.7, 1.0)}


class Directed(Frozen):
    """A direction, added or ablated. Strengths of ``add`` count vectors as extracted, or the site's activation norm."""

    operation: Literal["add", "ablate"] = "add"
    unit: Literal["vector", "norm"] = "vector"

    @model_validator(mode="after")
    def _ablation_has_no_unit(self) -> Self:
        if self.operation == "ablate" and "unit" in self.model_fields_set:
            raise ValueError("ablate uses the direction alone: leave unit out")
        return self

    @property
    def grid(self) -> tuple[float, ...]:
        """Strengths that are tried where the request names none."""
        return _ABLATE_GRID if self.operation == "ablate" else _ADD_GRID[self.unit]


class Contrast(Directed):
    """The difference in means of two datasets of prompts (as ``extract_vector``)."""

    positive: Reference
    negative: Reference
    position: Literal["last", "mean", "answer"] = "last"


class DifferenceInMeans(Contrast):
    """The swept model's own difference in means, at every site."""

    kind: Literal["difference_in_means"]


class StoredVector(Directed):
    """A vector artifact of the swept model, at the sites it has."""

    kind: Literal["vector"]
    vector: Reference


class RidgeSwitch(Frozen):
    """A switch to ``base`` in closed form at each site alone, on ``dataset``; answers left open are the base's own."""

    kind: Literal["switch"]
    base: ModelName
    dataset: Reference
    ridge: Ridge = 1e-2
    residual: bool = True

    @property
    def grid(self) -> tuple[float, ...]:
        """Strengths that are tried where the request names none."""
        return _SWITCH_GRID


class MappedVector(Contrast):
    """The difference in means of ``source`` at each of its sites, carried to each site of the swept model.

    A ridge map is fitted for every pair of sites from one reading of ``texts``; what it carries gets the norm of the
    swept model's own difference in means at the site.
    """

    kind: Literal["transfer"]
    source: ModelName
    texts: Reference
    source_sites: Sites | None = None
    alignment: Literal["offsets", "last", "position"] = "offsets"
    ridge: Ridge = 1e-2

    _distinct = field_validator("source_sites")(lambda sites: sites and distinct(sites))


class Patching(Frozen):
    """Prompts row by row with and without what is to be undone; ``pairs`` of them are patched."""

    triggered: Reference
    clean: Reference
    pairs: Annotated[int, Field(strict=True, ge=1, le=1000)] = 32


class SweepSites(Parameters):
    """Answers ``limit`` of ``prompts`` under every (site, strength) and says where the edit works best.

    ``aim`` is what an answer should be: equal to the row's own answer, or with or without the text ``marker``.
    ``sites`` None are all sites, ``strengths`` None those of :attr:`grid`, ``model`` None the served model.
    """

    edit: Annotated[DifferenceInMeans | StoredVector | RidgeSwitch | MappedVector, Field(discriminator="kind")]
    prompts: Reference
    model: ModelName | None = None
    sites: Sites | None = None
    strengths: Annotated[tuple[Strength, ...], Field(min_length=1, max_length=64)] | None = None
    aim: Literal["exact_match", "marker_present", "marker_absent"] = "exact_match"
    marker: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    limit: Limit = 64
    validation_fraction: Annotated[float, Field(strict=True, ge=0.1, le=0.9, allow_inf_nan=False)] = 0.5
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=4096)] = 64
    batch_size: BatchSize = 64
    max_length: Length = 256
    patching: Patching | None = None
    seed: Seed = 0

    _distinct = field_validator("sites")(lambda sites: sites and distinct(sites))

    @field_validator("strengths")
    @classmethod
    def _different(cls, strengths: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if strengths is not None and (0.0 in strengths or len(set(strengths)) != len(strengths)):
            raise ValueError("names 0 (measured anyway) or a strength twice: list each other strength once")
        return strengths

    @model_validator(mode="after")
    def _marker_where_needed(self) -> Self:
        if self.marker is None and (self.aim != "exact_match" or self.patching is not None):
            raise ValueError(f"marker is needed for {'patching' if self.aim == 'exact_match' else self.aim}: set it")
        return self

    @property
    def grid(self) -> tuple[float, ...]:
        """The strengths to try, ascending."""
        return tuple(sorted(self.strengths or self.edit.grid))


class SweepSitesJob(Submission):
    """``name`` becomes the name of the report."""

    kind: Literal["sweep_sites"]
    parameters: SweepSites
