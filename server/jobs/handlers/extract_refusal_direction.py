"""``extract_refusal_direction``: the direction that mediates refusal, chosen by its effect on held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from mappers.behaviour import Answer, ablating, adding, greedy_answers
from mappers.hooks import BlockCallback
from mappers.loading import LoadedModel
from mappers.manifest import Manifest
from mappers.refusal_direction import Held, Place, Scores, candidates, choose, refusal_tokens, score_candidates
from mappers.refusals import is_refusal
from mappers.sites import Site
from mappers.tensors import save_vector
from mappers.vectors import SiteNorms
from server.jobs.context import JobContext, binding
from server.jobs.handlers.contrast import HeldOut, Recipe
from server.jobs.handlers.fitting import split
from server.jobs.handlers.prompts import read_prompts
from server.jobs.specs.vectors import ExtractRefusalDirection

_TABLE_ROWS = 256
_COLUMNS = ("layer", "position", "ablated", "added", "kl")

Prompts = Sequence[tuple[int, ...]]


def extract_refusal_direction(job: JobContext, parameters: ExtractRefusalDirection) -> None:
    """Stages the chosen vector at its own site, with the table it was chosen from.

    Raises DataError for unfit data or a model that refuses nothing, TrainingError where no candidate passes.
    """
    name = parameters.model or job.order.served
    loaded = job.load(name)
    harmful, held_harmful = _split(job, loaded, parameters, parameters.harmful)
    harmless, held_harmless = _split(job, loaded, parameters, parameters.harmless)
    job.stage("answering held-out prompts")
    refused = _answers(loaded, held_harmful, {}, parameters)
    held = Held(held_harmful, held_harmless, refusal_tokens(refused, parameters.refusals))
    job.stage("reading prompts")
    size, norms = parameters.batch_size, SiteNorms()
    vectors = candidates(loaded, harmful, harmless, parameters.positions, batch_size=size, norms=norms)
    scored: dict[Place, Scores] = {}
    for place, scores in score_candidates(loaded, vectors, held, batch_size=size):
        scored[place] = scores
        job.stage("scoring candidates", len(scored), len(vectors))
    chosen = choose(scored, loaded.stack.layers, max_kl=parameters.max_kl, max_layer=parameters.max_layer)
    (site, position), v_D = chosen, vectors[chosen]
    job.stage("measuring the chosen direction")
    every = dict.fromkeys((Site(layer) for layer in range(loaded.stack.layers)), ablating(v_D))
    effect = {
        "refused_harmful": _rate(refused, parameters),
        "refused_harmful_ablated": _rate(_answers(loaded, held_harmful, every, parameters), parameters),
        "refused_harmless": _rate(_answers(loaded, held_harmless, {}, parameters), parameters),
        "refused_harmless_added": _rate(
            _answers(loaded, held_harmless, {site: adding(v_D, 1.0)}, parameters), parameters
        ),
        "kl_harmless_ablated": scored[chosen].kl,
    }
    roles = {"positive": parameters.harmful, "negative": parameters.harmless}
    training: dict[str, JsonValue] = {
        "job": job.order.job_id,
        "datasets": {role: job.dataset_facts(reference) for role, reference in roles.items()},
        "prompts": {"positive": len(harmful), "negative": len(harmless)},
        "validation_prompts": {"positive": len(held_harmful), "negative": len(held_harmless)},
        "parameters": parameters.stored(),
        "candidates": {"scored": len(scored), "columns": list(_COLUMNS), "least_refusing": _table(scored)},
    }
    recipe = Recipe(
        method="refusal_direction",
        position=position,
        max_length=parameters.max_length,
        held_out=HeldOut(fraction=parameters.validation_fraction, seed=parameters.seed),
    )
    manifest = Manifest(
        kind="vector",
        name=job.order.spec.name,
        created_at=job.order.created_at,
        target=binding(name, loaded),
        sites=(str(site),),
        dtype="float32",
        training=training | recipe.facts(),
        effect=effect,
        parents=tuple(job.parent(role, reference) for role, reference in roles.items()),
        site_norms={str(site): norms.values()[site]},
    )
    save_vector(job.staging, {site: v_D}, manifest)


def _split(
    job: JobContext, loaded: LoadedModel, parameters: ExtractRefusalDirection, reference: str
) -> tuple[Prompts, Prompts]:
    """Token ids of prompts to make directions of, and of others to choose by."""
    prompts = [prompt.ids for prompt in read_prompts(job, loaded, reference, parameters.max_length)]
    return split(prompts, parameters.validation_fraction, parameters.seed)


def _answers(
    loaded: LoadedModel,
    prompts: Prompts,
    callbacks: Mapping[Site, BlockCallback],
    parameters: ExtractRefusalDirection,
) -> list[Answer]:
    return greedy_answers(
        loaded, prompts, callbacks, max_new_tokens=parameters.max_new_tokens, batch_size=parameters.batch_size
    )


def _rate(answers: Sequence[Answer], parameters: ExtractRefusalDirection) -> float:
    return sum(is_refusal(answer.text, parameters.refusals) for answer in answers) / len(answers)


def _table(scored: Mapping[Place, Scores]) -> list[JsonValue]:
    """The candidates whose ablation leaves the least refusal, as rows of ``_COLUMNS``: a manifest has little room."""
    best = sorted(scored.items(), key=lambda item: item[1].ablated)[:_TABLE_ROWS]
    return [
        [site.layer, position, *(round(value, 4) for value in (scores.ablated, scores.added, scores.kl))]
        for (site, position), scores in best
    ]
