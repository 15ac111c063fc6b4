"""``extract_vector``: the difference in means of two datasets of prompts."""

from __future__ import annotations

from pydantic import JsonValue
from torch import Tensor

from mappers.errors import DataError
from mappers.manifest import Manifest
from mappers.sites import Site
from mappers.tensors import save_vector
from mappers.vectors import difference_in_means, row_activations
from server.jobs.context import JobContext, binding
from server.jobs.handlers.prompts import prompt_ids
from server.jobs.specs.vectors import DATASET_ROLES, ExtractVector


def extract_vector(job: JobContext, parameters: ExtractVector) -> None:
    """Stages the vector, one direction a site. Raises DataError for unfit data, ArtifactMismatch for no such layer."""
    name = parameters.model or job.order.served
    loaded = job.load(name)
    sites = sorted(site.site() for site in parameters.sites)
    references = {"positive": parameters.positive, "negative": parameters.negative}
    means: dict[str, dict[Site, Tensor]] = {}
    facts: dict[str, JsonValue] = {}
    for number, role in enumerate(DATASET_ROLES):
        job.stage(f"reading {role} prompts", number, len(DATASET_ROLES))
        sequences = prompt_ids(job, loaded, references[role], parameters.max_length)
        means[role] = row_activations(
            loaded, sites, sequences, position=parameters.position, batch_size=parameters.batch_size
        )
        facts[role] = job.dataset_facts(references[role]) | {
            "prompts": len(sequences),
            "tokens": sum(map(len, sequences)),
        }
    vectors = {site: difference_in_means(means["positive"][site], means["negative"][site]) for site in sites}
    if silent := [str(site) for site in sites if not bool(vectors[site].any())]:
        raise DataError(
            f"positive and negative have the same mean at {', '.join(silent)}, which leaves no direction: "
            "use two different datasets"
        )
    training: dict[str, JsonValue] = {
        "job": job.order.job_id,
        "method": "difference_in_means",
        "position": parameters.position,
        "max_length": parameters.max_length,
        "datasets": facts,
    }
    manifest = Manifest(
        kind="vector",
        name=job.order.spec.name,
        created_at=job.order.created_at,
        target=binding(name, loaded),
        sites=tuple(map(str, sites)),
        dtype="float32",
        training=training,
        parents=tuple(job.parent(role, references[role]) for role in DATASET_ROLES),
    )
    save_vector(job.staging, vectors, manifest)
