"""``extract_vector``: a direction from contrasting prompts, by one of several methods."""

from __future__ import annotations

from pydantic import JsonValue

from mappers.errors import DataError
from mappers.manifest import Manifest
from mappers.tensors import save_vector
from server.jobs.context import JobContext, binding
from server.jobs.handlers.contrast import Recipe, matched_text, read_contrast, read_sides
from server.jobs.specs.vectors import ExtractVector


def extract_vector(job: JobContext, parameters: ExtractVector) -> None:
    """Stages the vector, one direction a site.

    Raises DataError for unfit data, ArtifactMismatch for no such layer, TrainingError for a probe that does not
    converge.
    """
    name = parameters.model or job.order.served
    loaded = job.load(name)
    sites = sorted(site.site() for site in parameters.sites)
    settings = parameters.stored()
    recipe = Recipe.model_validate({key: settings[key] for key in Recipe.model_fields if key in settings})
    sides = read_sides(job, loaded, recipe, parameters.datasets)
    contrast = read_contrast(job, loaded, sites, sides, recipe, parameters.batch_size)
    vectors = {site: recipe.direction(contrast.positive[site], contrast.negative[site]) for site in sites}
    if silent := [str(site) for site in sites if not bool(vectors[site].any())]:
        raise DataError(
            f"positive and negative have the same mean at {', '.join(silent)}, which leaves no direction: "
            "use two different datasets"
        )
    training: dict[str, JsonValue] = {
        "job": job.order.job_id,
        "datasets": {role: job.dataset_facts(reference) for role, reference in parameters.datasets.items()},
        "prompts": {"positive": len(sides.positive), "negative": len(sides.negative)},
        "tokens": sum(map(len, sides.sequences)),
    }
    if parameters.method == "actadd" and (match := matched_text(sides, recipe)) is not None:
        training["match"] = match
    manifest = Manifest(
        kind="vector",
        name=job.order.spec.name,
        created_at=job.order.created_at,
        target=binding(name, loaded),
        sites=tuple(map(str, sites)),
        dtype="float32",
        training=training | recipe.facts(),
        parents=tuple(job.parent(role, reference) for role, reference in parameters.datasets.items()),
        site_norms={str(site): norm for site, norm in contrast.site_norms.items()},
    )
    save_vector(job.staging, vectors, manifest)
