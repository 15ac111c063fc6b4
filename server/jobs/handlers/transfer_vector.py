"""``transfer_vector``: a vector of one model carried through a mapper to the model the mapper leads to.

Shapes: D width of the target model, S of the source model.
"""

from __future__ import annotations

import torch
from pydantic import JsonValue
from torch import Tensor

from mappers.activations.collect import collect
from mappers.errors import ArtifactMismatch
from mappers.loading import LoadedModel
from mappers.manifest import Manifest, ModelBinding
from mappers.modules import Mapper
from mappers.sites import Site
from mappers.tensors import load_mapper, load_vector, save_vector
from mappers.vectors import Position, cosine, rescale, rms_norm, row_activations, transfer_by_pairs, transfer_linear
from server.jobs.context import JobContext
from server.jobs.handlers.prompts import prompt_ids
from server.jobs.specs.vectors import DATASET_ROLES, RescaleToNative, RescaleToRms, TransferVector

_BATCH = 16


def transfer_vector(job: JobContext, parameters: TransferVector) -> None:
    """Stages the vector at the mapper's target site.

    Rule ``pairs`` takes the activations of the prompts the vector was made from again and gives the mean of ``f(h+)``
    less the mean of ``f(h-)``; rule ``linear`` gives ``W v``. Raises ArtifactMismatch where an artifact and its model
    no longer agree, DataError for a vector that has no direction.
    """
    manifest, vectors = load_vector(job.path(parameters.vector))
    mapper_manifest, mapper = load_mapper(job.path(parameters.mapper))
    source_site, target_site = Site.parse(mapper_manifest.source_sites[0]), mapper_manifest.target_sites[0]
    v_S = vectors[source_site]
    if parameters.rule == "pairs":
        mapped_D = _by_pairs(job, manifest, mapper_manifest, mapper)
    else:
        job.stage("mapping")
        mapped_D = transfer_linear(mapper, v_S)
    scaled_D, effect = _rescaled(job, parameters, manifest, mapper_manifest, mapped_D)
    transfer: dict[str, JsonValue] = {
        "rule": parameters.rule,
        "vector": manifest.name,
        "mapper": mapper_manifest.name,
        "rescale": parameters.rescale.model_dump(mode="json") if parameters.rescale else None,
        "norm_source": float(v_S.norm()),
        "norm_mapped": float(mapped_D.norm()),
    }
    transferred = Manifest(
        kind="vector",
        name=job.order.spec.name,
        created_at=job.order.created_at,
        target=mapper_manifest.target,
        source=mapper_manifest.source,
        sites=(str(target_site),),
        source_sites=(str(source_site),),
        dtype="float32",
        training={"job": job.order.job_id, "source_vector": dict(manifest.training)},
        effect=effect,
        parents=(job.parent("vector", parameters.vector), job.parent("mapper", parameters.mapper)),
        transfer=transfer,
    )
    save_vector(job.staging, {target_site: scaled_D}, transferred)


def _by_pairs(job: JobContext, vector: Manifest, mapper_manifest: Manifest, mapper: Mapper) -> Tensor:
    """The mapped difference in means, at the position and length the vector was extracted with."""
    loaded = job.load_bound(_bound(mapper_manifest.source, mapper_manifest))
    site = Site.parse(mapper_manifest.source_sites[0])
    position: Position = "mean" if vector.training.get("position") == "mean" else "last"
    means = {}
    for number, (role, sequences) in enumerate(_prompts(job, vector, loaded).items()):
        job.stage(f"reading {role} prompts", number, len(DATASET_ROLES))
        means[role] = row_activations(loaded, [site], sequences, position=position, batch_size=_BATCH)[site]
    return transfer_by_pairs(mapper, means["positive"], means["negative"])


def _rescaled(
    job: JobContext, parameters: TransferVector, vector: Manifest, mapper_manifest: Manifest, mapped_D: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The vector at the norm asked for, and what was measured on the way."""
    site = mapper_manifest.target_sites[0]
    if isinstance(parameters.rescale, RescaleToNative):
        native_D = load_vector(job.path(parameters.rescale.vector))[1][site]
        scaled_D = rescale(mapped_D, float(native_D.norm()))
        return scaled_D, {"cosine_to_native": cosine(mapped_D, native_D), "norm_native": float(native_D.norm())}
    if isinstance(parameters.rescale, RescaleToRms):
        rms = _target_rms(job, vector, mapper_manifest, site)
        return rescale(mapped_D, parameters.rescale.fraction * rms), {"rms_at_site": rms}
    return mapped_D, {}


def _target_rms(job: JobContext, vector: Manifest, mapper_manifest: Manifest, site: Site) -> float:
    loaded = job.load_bound(_bound(mapper_manifest.target, mapper_manifest))
    job.stage("measuring the target site")
    sequences = [ids for part in _prompts(job, vector, loaded).values() for ids in part]
    parts = [batch.real(site).cpu() for batch in collect(loaded, [site], sequences, batch_size=_BATCH)]
    return rms_norm(torch.cat(parts))


def _prompts(job: JobContext, vector: Manifest, loaded: LoadedModel) -> dict[str, list[tuple[int, ...]]]:
    """The prompts a vector was made from, as ``loaded`` reads them."""
    parents = {parent.role: parent.id for parent in vector.parents}
    limit = vector.training.get("max_length")
    length = limit if isinstance(limit, int) else 1 << 20
    return {role: prompt_ids(job, loaded, parents[role], length) for role in DATASET_ROLES}


def _bound(binding: ModelBinding | None, manifest: Manifest) -> ModelBinding:
    if binding is None:
        raise ArtifactMismatch(f"{manifest.name!r} names no model: train the mapper again")
    return binding
