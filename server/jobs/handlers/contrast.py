"""The two sides of a contrast: read when a vector is made, and again, by its manifest, when it is carried on.

Shapes: R rows, or matched tokens of them, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import JsonValue, ValidationError
from torch import Tensor

from mappers.contrast import Trigger, triggered
from mappers.directions import differing_tokens, logistic_direction, principal_direction
from mappers.errors import ArtifactMismatch, DataError
from mappers.loading import LoadedModel
from mappers.manifest import Manifest
from mappers.rendering import Rendered
from mappers.sites import Site
from mappers.vectors import (
    Direction,
    Pick,
    SiteNorms,
    TextPosition,
    difference_in_means,
    picked_activations,
    text_activations,
)
from server.jobs.context import JobContext
from server.jobs.handlers.fitting import split
from server.jobs.handlers.prompts import fits, read_prompts, rendered
from server.jobs.specs.fields import Frozen
from server.jobs.specs.vectors import DATASET_ROLES, PROMPTS_ROLE, Method

_PAIRED = ("actadd", "pca")


class HeldOut(Frozen):
    """Prompts kept out of a vector, as :func:`server.jobs.handlers.fitting.split` draws them."""

    fraction: float
    seed: int


class Recipe(Frozen):
    """How a vector comes of its datasets; kept in its manifest's ``training``, beside facts of other kinds."""

    method: Method | Literal["refusal_direction"]
    position: TextPosition = "last"
    max_length: int
    trigger: Trigger | None = None
    l2: float | None = None
    held_out: HeldOut | None = None

    @classmethod
    def of(cls, vector: Manifest) -> Recipe:
        """Raises ArtifactMismatch for a vector that was not extracted here."""
        try:
            return cls.model_validate({key: vector.training[key] for key in cls.model_fields if key in vector.training})
        except ValidationError as error:
            raise ArtifactMismatch(
                f"the manifest of {vector.name!r} does not say how its prompts are read: extract it again"
            ) from error

    @property
    def answers(self) -> bool:
        """Whether rows are read with their answers."""
        return self.position == "answer"

    @property
    def direction(self) -> Direction:
        """The method as a function of the two sides' activations."""
        if self.method == "logistic":
            assert self.l2 is not None
            return partial(logistic_direction, l2=self.l2)
        return principal_direction if self.method == "pca" else difference_in_means

    def facts(self) -> dict[str, JsonValue]:
        """For a manifest."""
        return self.model_dump(mode="json", exclude_unset=True, exclude_none=True)


@dataclass(frozen=True, slots=True)
class Sides:
    """Prompts of both sides; where the method compares pairs, or a trigger made one of the other, pair by pair."""

    positive: list[Rendered]
    negative: list[Rendered]

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """Token ids of both, positive first."""
        return [prompt.ids for prompt in (*self.positive, *self.negative)]


@dataclass(frozen=True, slots=True)
class Contrast:
    """Activations ``h_RD`` of both sides per site, and the residual stream's norm there."""

    positive: dict[Site, Tensor]
    negative: dict[Site, Tensor]
    site_norms: dict[Site, float]

    def mean(self, site: Site) -> Tensor:
        """Of all that was read at a site, ``(D,)``."""
        return torch.cat([self.positive[site], self.negative[site]]).mean(0)


def read_sides(job: JobContext, loaded: LoadedModel, recipe: Recipe, references: Mapping[str, str]) -> Sides:
    """Both sides as ``loaded`` reads them, too long prompts left out; raises DataError for unfit data."""
    if recipe.trigger is not None:
        sides = _triggered(job, loaded, references[PROMPTS_ROLE], recipe.trigger, recipe)
    elif recipe.method in _PAIRED:
        positive, negative = (
            rendered(loaded, job.rows(references[role]), answers=recipe.answers) for role in DATASET_ROLES
        )
        if len(positive) != len(negative):
            raise DataError(
                f"method {recipe.method!r} compares row i of positive with row i of negative, but they have "
                f"{len(positive)} and {len(negative)} rows: give both as many"
            )
        sides = _fitting(positive, negative, recipe.max_length)
    else:
        sides = Sides(
            *(
                read_prompts(job, loaded, references[role], recipe.max_length, answers=recipe.answers)
                for role in DATASET_ROLES
            )
        )
    if recipe.held_out is None:
        return sides
    fraction, seed = recipe.held_out.fraction, recipe.held_out.seed
    return Sides(split(sides.positive, fraction, seed)[0], split(sides.negative, fraction, seed)[0])


def read_contrast(
    job: JobContext, loaded: LoadedModel, sites: list[Site], sides: Sides, recipe: Recipe, batch_size: int
) -> Contrast:
    """The activations that the recipe compares. Raises DataError for prompts it cannot read."""
    norms = SiteNorms()
    found = []
    spans = _spans(sides) if recipe.method == "actadd" else None
    for number, prompts in enumerate((sides.positive, sides.negative)):
        job.stage(f"reading {DATASET_ROLES[number]} prompts", number, len(DATASET_ROLES))
        if spans is None:
            found.append(
                text_activations(loaded, sites, prompts, position=recipe.position, batch_size=batch_size, norms=norms)
            )
        else:
            sequences = [prompt.ids for prompt in prompts]
            tokens = picked_activations(
                loaded, sites, sequences, _at([pair[number] for pair in spans]), batch_size=batch_size, norms=norms
            )
            found.append({site: torch.cat(rows) for site, rows in tokens.items()})
    return Contrast(found[0], found[1], norms.values())


def matched_text(sides: Sides, recipe: Recipe) -> str | None:
    """The text that ``apply.match`` finds again: the trigger, or what all positive prompts alike differ in."""
    if recipe.trigger is not None:
        return recipe.trigger.text.strip() or None
    texts = set()
    for prompt, (places, _) in zip(sides.positive, _spans(sides), strict=True):
        covered = [prompt.offsets[place] for place in places if prompt.offsets[place][1] > 0]
        texts.add(prompt.text[covered[0][0] : covered[-1][1]] if covered else "")
    text = texts.pop()
    return text if text and not texts else None


def _at(places: Sequence[range]) -> Pick:
    return lambda row, h_ND: h_ND[places[row].start : places[row].stop]


def _spans(sides: Sides) -> list[tuple[range, range]]:
    return [differing_tokens(ours.ids, theirs.ids) for ours, theirs in zip(sides.positive, sides.negative, strict=True)]


def _triggered(job: JobContext, loaded: LoadedModel, reference: str, trigger: Trigger, recipe: Recipe) -> Sides:
    rows = [(found, row) for row in job.rows(reference) if (found := triggered(row, trigger)) is not None]
    if not rows:
        raise DataError(
            f"no row of {reference!r} has a place for the trigger: it needs a user turn, and with 'replaces' that text"
        )
    ours, theirs = (rendered(loaded, side, answers=recipe.answers) for side in zip(*rows, strict=True))
    return _fitting(ours, theirs, recipe.max_length)


def _fitting(positive: list[Rendered], negative: list[Rendered], max_length: int) -> Sides:
    """The pairs of which both can be read."""
    pairs = [pair for pair in zip(positive, negative, strict=True) if all(fits(side, max_length) for side in pair)]
    if not pairs:
        raise DataError(f"no pair of prompts has 1 to {max_length} tokens: raise max_length or change the rows")
    return Sides([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
