"""``transfer_vector``: a vector of one model carried through a mapper to the model the mapper leads to.

Shapes: D width of the target model, S of the source model.
"""

from __future__ import annotations

from functools import cached_property

from pydantic import JsonValue
from torch import Tensor

from mappers.activations.collect import collect
from mappers.behaviour import adding
from mappers.errors import ArtifactMismatch
from mappers.hooks import BlockCallback
from mappers.loading import LoadedModel
from mappers.manifest import Manifest, ModelBinding
from mappers.sites import Site
from mappers.tensors import load_mapper, load_vector, save_vector
from mappers.vectors import (
    SiteNorms,
    cosine,
    random_vector,
    rescale,
    transfer_by_jacobian,
    transfer_by_pairs,
    transfer_linear,
)
from server.jobs.context import JobContext
from server.jobs.handlers.contrast import Recipe, Sides, read_contrast, read_sides
from server.jobs.handlers.marking import marker_rates
from server.jobs.specs.vectors import RescaleToNative, RescaleToRms, TransferVector, VectorCheck, dataset_parents

_BATCH = 16


def transfer_vector(job: JobContext, parameters: TransferVector) -> None:
    """Stages the vector at the mapper's target site.

    Rules ``pairs`` and ``jacobian`` read the prompts the vector was made from again, through the source model; the
    target model reads them for the norm of its site, where they are known. Raises ArtifactMismatch where an artifact
    and its model no longer agree, DataError for a vector that has no direction.
    """
    transfer = _Transfer(job, parameters)
    mapped_D, native_D, site_norm = transfer.mapped(), transfer.native(), transfer.site_norm()
    scaled_D = _rescaled(parameters, mapped_D, native_D, site_norm)
    effect = {} if native_D is None else {"cosine_to_native": cosine(mapped_D, native_D)}
    if parameters.check is not None:
        settings = _settings(parameters.check, transfer.site, scaled_D, native_D)
        effect |= marker_rates(job, transfer.target, parameters.check, settings)
    facts: dict[str, JsonValue] = {
        "rule": parameters.rule,
        "vector": transfer.vector.name,
        "mapper": transfer.mapper.name,
        "rescale": parameters.rescale.model_dump(mode="json") if parameters.rescale else None,
        "norm_source": float(transfer.v_S.norm()),
        "norm_mapped": float(mapped_D.norm()),
        "norm_native": None if native_D is None else float(native_D.norm()),
        "check": parameters.check.model_dump(mode="json") if parameters.check else None,
    }
    manifest = Manifest(
        kind="vector",
        name=job.order.spec.name,
        created_at=job.order.created_at,
        target=transfer.mapper.target,
        source=transfer.mapper.source,
        sites=(str(transfer.site),),
        source_sites=(str(transfer.source_site),),
        dtype="float32",
        training={"job": job.order.job_id, "source_vector": dict(transfer.vector.training)},
        effect=effect,
        parents=(job.parent("vector", parameters.vector), job.parent("mapper", parameters.mapper)),
        transfer=facts,
        site_norms={} if site_norm is None else {str(transfer.site): site_norm},
    )
    save_vector(job.staging, {transfer.site: scaled_D}, manifest)


class _Transfer:
    """A vector, a mapper and the models at its two ends, which are loaded when they are first needed."""

    def __init__(self, job: JobContext, parameters: TransferVector) -> None:
        self._job = job
        self._parameters = parameters
        self.vector, vectors = load_vector(job.path(parameters.vector))
        self.mapper, self._map = load_mapper(job.path(parameters.mapper))
        self.source_site, self.site = Site.parse(self.mapper.source_sites[0]), self.mapper.target_sites[0]
        self.v_S = vectors[self.source_site]

    @cached_property
    def target(self) -> LoadedModel:
        return self._job.load_bound(_bound(self.mapper.target, self.mapper))

    def native(self) -> Tensor | None:
        """The vector to compare with, where one is named."""
        name = self._parameters.compared
        return None if name is None else load_vector(self._job.path(name))[1][self.site]

    def mapped(self) -> Tensor:
        """The vector behind the mapper, by the rule asked for."""
        rule = self._parameters.rule
        if rule == "linear":
            self._job.stage("mapping")
            return transfer_linear(self._map, self.v_S)
        loaded, recipe = self._job.load_bound(_bound(self.mapper.source, self.mapper)), Recipe.of(self.vector)
        contrast = read_contrast(self._job, loaded, [self.source_site], self._sides(loaded), recipe, _BATCH)
        if rule == "jacobian":
            return transfer_by_jacobian(self._map, contrast.mean(self.source_site), self.v_S)
        positive_RS, negative_RS = contrast.positive[self.source_site], contrast.negative[self.source_site]
        return transfer_by_pairs(self._map, positive_RS, negative_RS, recipe.direction)

    def site_norm(self) -> float | None:
        """The residual stream's norm at the target site, on the vector's prompts; None where they are not at hand."""
        order, datasets = self._job.order, dataset_parents(self.vector)
        known = bool(datasets) and set(datasets.values()) <= set(order.artifacts)
        if not known or _bound(self.mapper.target, self.mapper).model not in order.models:
            return None
        sequences, norms = self._sides(self.target).sequences, SiteNorms()
        self._job.stage("measuring the target site")
        for batch in collect(self.target, [self.site], sequences, batch_size=_BATCH):
            norms.add(batch)
        return norms.values()[self.site]

    def _sides(self, loaded: LoadedModel) -> Sides:
        """The prompts the vector was made from, as ``loaded`` reads them."""
        return read_sides(self._job, loaded, Recipe.of(self.vector), dataset_parents(self.vector))


def _rescaled(parameters: TransferVector, mapped_D: Tensor, native_D: Tensor | None, site_norm: float | None) -> Tensor:
    if isinstance(parameters.rescale, RescaleToNative):
        assert native_D is not None
        return rescale(mapped_D, float(native_D.norm()))
    if isinstance(parameters.rescale, RescaleToRms):
        assert site_norm is not None
        return rescale(mapped_D, parameters.rescale.fraction * site_norm)
    return mapped_D


def _settings(
    check: VectorCheck, site: Site, mapped_D: Tensor, native_D: Tensor | None
) -> dict[str, dict[Site, BlockCallback]]:
    """What a check compares: ``unsteered``, and ``<vector>@<strength>`` of each vector."""
    vectors = {"mapped": mapped_D, "random": random_vector(len(mapped_D), float(mapped_D.norm()), check.seed)}
    vectors |= {} if native_D is None else {"native": native_D}
    steered = {
        f"{name}@{strength:g}": {site: adding(v_D, strength)}
        for strength in check.strengths
        for name, v_D in vectors.items()
    }
    return {"unsteered": {}, **steered}


def _bound(binding: ModelBinding | None, manifest: Manifest) -> ModelBinding:
    if binding is None:
        raise ArtifactMismatch(f"{manifest.name!r} names no model: train the mapper again")
    return binding
