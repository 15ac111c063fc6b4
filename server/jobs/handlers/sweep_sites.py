"""``sweep_sites``: behaviour by site and strength through the serving engine, and what could have foretold it.

Shapes: C cells, P prompts, D width.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING

from pydantic import JsonValue
from torch import Tensor

from mappers.activations.collect import collect
from mappers.dataset import DatasetRow
from mappers.errors import DataError
from mappers.loading import LoadedModel
from mappers.manifest import Manifest
from mappers.patching import PromptPair, patch_sites
from mappers.rendering import render
from mappers.report import save_report
from mappers.sites import Place, Site
from mappers.vectors import SiteNorms, random_vector, rescale
from server.evaluation.answering import Answerer, steered, switched
from server.evaluation.sweep import Cell, Edit, Judge, Progress, Verdicts, answer_cells
from server.evaluation.sweep_report import Sweep
from server.jobs.context import JobContext, binding
from server.jobs.handlers.sweep_edits import Edits, build_edits
from server.jobs.specs.sweeps import MappedVector, Patching, RidgeSwitch, StoredVector, SweepSites

if TYPE_CHECKING:
    from server.interventions.catalog import ResolvedIntervention

_CELLS = "cells"
_CONTROLS = "controls"


def sweep_sites(job: JobContext, parameters: SweepSites) -> None:
    """Stages the report. Raises DataError for unfit data, ArtifactMismatch for a vector or site of another model."""
    name = parameters.model or job.order.served
    loaded = job.load(name)
    sites = tuple(sorted(site.site() for site in parameters.sites)) if parameters.sites else loaded.stack.sites
    rows = _prompts(job, parameters, loaded)
    norms = _norms(loaded, sites, rows, parameters.batch_size)
    edits = build_edits(job, parameters, loaded, sites)
    predictors = {**edits.predictors, **_relative_norms(edits, norms), **_patched(job, parameters, loaded, sites)}
    sweep = replace(_sweep(job, parameters, loaded, edits, rows, norms), predictors=predictors)
    content: dict[str, JsonValue] = {
        "model": name,
        "parameters": parameters.stored(),
        "site_norms": {str(site): norm for site, norm in norms.items()},
        **sweep.content(),
    }
    chosen = sweep.cells[sweep.chosen]
    reached = sweep.verdicts.reached(sweep.aim)[sweep.chosen, sweep.validation :]
    manifest = Manifest(
        kind="report",
        name=job.order.spec.name,
        created_at=job.order.created_at,
        target=binding(name, loaded),
        sites=(str(chosen.site),),
        source_sites=() if chosen.source is None else (str(chosen.source),),
        training={"job": job.order.job_id, "parameters": parameters.stored()},
        effect={"strength": chosen.strength, parameters.aim: float(reached.float().mean())},
        parents=(job.parent("prompts", parameters.prompts), *edits.parents),
    )
    save_report(job.staging, content, sweep.pictures(*_title(name, parameters)), manifest)


def _title(model: str, parameters: SweepSites) -> tuple[str, str]:
    """What the pictures show, and what strengths count in them."""
    match parameters.edit:
        case RidgeSwitch(base=base):
            return f"{model} switched to {base}", "share"
        case MappedVector(source=source):
            what = f"vector of {source} in {model}"
        case StoredVector(vector=vector):
            what = f"{vector} in {model}"
        case _:
            what = f"difference in means in {model}"
    if parameters.edit.operation == "ablate":
        return f"{what}, ablated", "share"
    return what, {"vector": "vectors", "norm": "activation norms"}[parameters.edit.unit]


def _prompts(job: JobContext, parameters: SweepSites, loaded: LoadedModel) -> list[DatasetRow]:
    """The prompts to answer, in an order that the seed draws: the first of them choose, the others test."""
    rows = [
        row
        for row in job.rows(parameters.prompts)
        if 0 < len(render(loaded.tokenizer, row).ids) <= parameters.max_length
    ]
    if parameters.aim == "exact_match" and any(row.answer is None for row in rows):
        raise DataError(f"a row of {parameters.prompts!r} has no answer to compare with: add it or set another aim")
    if len(rows) < 2:
        raise DataError(f"{parameters.prompts!r} has fewer than 2 rows within max_length: one chooses, one tests")
    return random.Random(parameters.seed).sample(rows, min(parameters.limit, len(rows)))


def _norms(
    loaded: LoadedModel, sites: Sequence[Site], rows: Sequence[DatasetRow], batch_size: int
) -> dict[Site, float]:
    """The RMS norm of the activations at each site on the prompts: the unit ``norm`` of strengths."""
    sequences, norms = [render(loaded.tokenizer, row).ids for row in rows], SiteNorms()
    for batch in collect(loaded, sites, sequences, batch_size=batch_size):
        norms.add(batch)
    return norms.values()


def _relative_norms(edits: Edits, norms: Mapping[Site, float]) -> dict[str, dict[Place, float]]:
    vectors = {place: v_D for place, v_D in edits.effects.items() if isinstance(v_D, Tensor)}
    found = {(source, site): float(v_D.norm()) / norms[site] for (source, site), v_D in vectors.items()}
    return {"relative_norm": found} if found else {}


def _patched(
    job: JobContext, parameters: SweepSites, loaded: LoadedModel, sites: Sequence[Site]
) -> dict[str, dict[Place, float]]:
    """The share of the marker's log-probability that clean activations take away, at the last token and at all."""
    if parameters.patching is None:
        return {}
    job.stage("patching activations")
    pairs = _pairs(job, parameters.patching, loaded)
    marker = tuple(loaded.tokenizer(parameters.marker, add_special_tokens=False)["input_ids"])
    found = patch_sites(loaded, sites, pairs, marker, batch_size=parameters.batch_size)
    if not all(isfinite(patched.last_share) for patched in found):
        raise DataError("triggered and clean prompts make the marker equally likely: patching has nothing to explain")
    return {
        "patching_last": {(None, patched.site): patched.last_share for patched in found},
        "patching_every": {(None, patched.site): patched.every_share for patched in found},
    }


def _pairs(job: JobContext, patching: Patching, loaded: LoadedModel) -> list[PromptPair]:
    triggered, clean = (
        [render(loaded.tokenizer, row).ids for row in job.rows(reference)]
        for reference in (patching.triggered, patching.clean)
    )
    if len(triggered) != len(clean):
        raise DataError(
            f"{patching.triggered!r} has {len(triggered)} rows, {patching.clean!r} has {len(clean)}: patching pairs "
            "them row by row"
        )
    return [PromptPair(*pair) for pair in zip(triggered, clean, strict=True)][: patching.pairs]


def _sweep(
    job: JobContext,
    parameters: SweepSites,
    loaded: LoadedModel,
    edits: Edits,
    rows: Sequence[DatasetRow],
    norms: Mapping[Site, float],
) -> Sweep:
    """Answers under every cell and no edit at all, chooses, and answers under the controls of what was chosen."""
    cells = [
        Cell(site, strength, replace(base, strength=strength), source)
        for (source, site), effect in edits.effects.items()
        for base in [_intervention(parameters, effect, site, norms[site])]
        for strength in parameters.grid
    ]
    validation = min(max(round(parameters.validation_fraction * len(rows)), 1), len(rows) - 1)
    with Answerer(loaded, rows=parameters.batch_size) as answerer:
        tried = [_same(), *(_same(cell.intervention) for cell in cells)]
        found = _answers(job, parameters, answerer, tried, rows, _CELLS)
        sweep = Sweep(cells, found.of(slice(1, None)), found.of(slice(0, 1)), validation, parameters.aim)
        controls = _controls(parameters, edits, cells[sweep.chosen], norms)
        if not controls:
            return sweep
        found = _answers(job, parameters, answerer, list(controls.values()), rows, _CONTROLS)
    named = {name: found.of(slice(place, place + 1)) for place, name in enumerate(controls)}
    return replace(sweep, controls=named)


def _intervention(parameters: SweepSites, effect: Tensor | object, site: Site, norm: float) -> ResolvedIntervention:
    """The edit at strength 1."""
    edit = parameters.edit
    if isinstance(edit, RidgeSwitch):
        return switched({site: effect})  # type: ignore[dict-item]
    assert isinstance(effect, Tensor)
    in_norms = edit.operation == "add" and edit.unit == "norm"
    return steered(rescale(effect, norm) if in_norms else effect, [site], 1.0, edit.operation)


def _controls(parameters: SweepSites, edits: Edits, chosen: Cell, norms: Mapping[Site, float]) -> dict[str, Edit]:
    """At the chosen cell: random directions of the same norm, and the model's own where the edit came from another.

    One direction can be lucky: every prompt gets another.
    """
    effect = edits.effects[chosen.source, chosen.site]
    if not isinstance(effect, Tensor):
        return {}

    def instead(v_D: Tensor) -> ResolvedIntervention:
        edit = _intervention(parameters, v_D, chosen.site, norms[chosen.site])
        return replace(edit, strength=chosen.strength)

    def random_one(prompt: int) -> tuple[ResolvedIntervention, ...]:
        v_D = random_vector(len(effect), float(effect.norm()), parameters.seed + prompt)
        return (instead(v_D.to(effect.device)),)

    native = {"native": _same(instead(edits.native[chosen.site]))} if chosen.site in edits.native else {}
    return {"random": random_one, **native}


def _same(*interventions: ResolvedIntervention) -> Edit:
    return lambda _prompt: interventions


def _answers(
    job: JobContext,
    parameters: SweepSites,
    answerer: Answerer,
    edits: Sequence[Edit],
    rows: Sequence[DatasetRow],
    part: str,
) -> Verdicts:
    """The verdicts under each of ``edits``; those of an earlier attempt's checkpoint are taken over."""
    saved = (job.checkpoints.load(part) or {}).get(part)
    progress = Progress(len(edits), len(rows), saved)
    stage, total = f"answering ({part})", len(edits) * len(rows)
    answered = total - len(progress.missing) * len(rows)

    def done(count: int) -> None:
        nonlocal answered
        answered += count
        job.stage(stage, answered, total)

    judge = Judge(parameters.marker)
    for known in answer_cells(answerer, edits, rows, judge, progress, max_tokens=parameters.max_new_tokens, done=done):
        job.step(stage, answered, total, {"cells": known}, part, lambda: {part: progress.state()})
    return progress.verdicts()
