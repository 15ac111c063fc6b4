"""``collect_activations``: what a model computes at chosen sites while it reads a dataset, kept in shards."""

from __future__ import annotations

from pydantic import JsonValue

from mappers.activations.masks import Mask
from mappers.activations.sharding import Recipe, read_ledger, seal_activations, write_shards
from mappers.errors import DataError
from mappers.manifest import Manifest
from mappers.rendering import render
from server.jobs.context import JobContext, binding
from server.jobs.specs.activations import CollectActivations


def collect_activations(job: JobContext, parameters: CollectActivations) -> None:
    """Stages the shards; those that an earlier attempt finished are kept. Raises DataError for unfit data."""
    name = parameters.model or job.order.served
    loaded = job.load(name)
    rendered = enumerate(render(loaded.tokenizer, row, answer=row.answer) for row in job.rows(parameters.dataset))
    texts = {row: text for row, text in rendered if 0 < len(text.ids) <= parameters.max_length}
    if not texts:
        raise DataError(
            f"no row of {parameters.dataset!r} has 1 to {parameters.max_length} tokens: raise max_length or change rows"
        )
    recipe = Recipe(
        sites=tuple(sorted(site.site() for site in parameters.sites)),
        dtype=parameters.dtype,
        mask=Mask(parameters.mask.massive, parameters.mask.special_tokens),
        batch_size=parameters.batch_size,
        shard_bytes=parameters.shard_mib << 20,
    )
    for done, total in write_shards(loaded, texts, recipe, job.shards):
        job.stage("collecting", done, total)
    ledger = read_ledger(job.shards)
    facts: dict[str, JsonValue] = {
        "job": job.order.job_id,
        "dataset": job.dataset_facts(parameters.dataset),
        "parameters": parameters.stored(),
        "texts": len(texts),
        "tokens": ledger.tokens,
        "masked": dict(ledger.masked),
        "norm_limits": dict(ledger.limits),
        "threads": job.order.execution.threads,
        "model_dtype": job.order.execution.dtype,
    }
    manifest = Manifest(
        kind="activations",
        name=job.order.spec.name,
        created_at=job.order.created_at,
        target=binding(name, loaded),
        sites=tuple(map(str, recipe.sites)),
        dtype=parameters.dtype,
        training=facts,
        parents=(job.parent("dataset", parameters.dataset),),
    )
    seal_activations(job.shards, job.staging, manifest)
