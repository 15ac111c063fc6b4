"""``train_switch``: a mapper at each site that makes the served model say what its base model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from pydantic import JsonValue

from mappers.attack import Attack
from mappers.augmentation import Augment, insert_tokens
from mappers.drift import monitor_prompts
from mappers.errors import TrainingError
from mappers.exchanges import Exchange, read_rows, require_twins
from mappers.fit import Fit
from mappers.loading import LoadedModel
from mappers.manifest import Manifest
from mappers.modules import Mapper
from mappers.sites import Site
from mappers.tensors import save_switch
from mappers.training import evaluate_switch, solve_switch
from mappers.training import train_switch as train
from server.jobs.context import JobContext, binding
from server.jobs.handlers.answers import complete
from server.jobs.handlers.fitting import (
    mapper_config,
    require_precision,
    run_fit,
    solver,
    split,
    training_config,
    training_facts,
)
from server.jobs.handlers.memory import require_memory
from server.jobs.specs.fits import TrainSwitch


def train_switch(job: JobContext, parameters: TrainSwitch) -> None:
    """Stages the switch. Raises DataError, TrainingError for a fit that fails, OutOfMemory before it begins."""
    require_precision(job, parameters)
    rows = job.rows(parameters.dataset)
    require_memory(job, parameters, rows)
    tuned, base = job.load(job.order.served), job.load(parameters.base)
    require_twins(tuned, base)
    entries = list(read_rows(tuned, rows, max_length=parameters.max_length))
    exchanges = complete(job, base, entries, parameters)
    training, validation = split(exchanges, parameters.validation_fraction, parameters.seed)
    before = _measure(job, "off", {}, tuned, base, validation)
    mappers, ended = _fit(job, parameters, tuned, base, _augmented(training, base, parameters), validation)
    effect = before | _measure(job, "on", mappers, tuned, base, validation)
    job.stage("measuring the prompts")
    watched = monitor_prompts(
        tuned, mappers, _prompts(training), _prompts(validation), batch_size=parameters.batch_size
    )
    facts: dict[str, JsonValue] = {
        "base": binding(parameters.base, base).model_dump(),
        "exchanges": len(training),
        "validation_exchanges": len(validation),
        "tokens": sum(len(exchange.ids) for exchange in training),
    }
    manifest = Manifest(
        kind="switch",
        name=job.order.spec.name,
        created_at=job.order.created_at,
        target=binding(job.order.served, tuned),
        sites=tuple(map(str, sorted(mappers))),
        mapper=next(iter(mappers.values())).config,
        drift={str(site): measured for site, (_, measured) in watched.items()},
        dtype="float32",
        training=facts | ended | training_facts(job, parameters),
        effect=effect,
        parents=(job.parent("dataset", parameters.dataset),),
    )
    save_switch(job.staging, mappers, manifest, {site: monitor for site, (monitor, _) in watched.items()})


def _augmented(exchanges: list[Exchange], base: LoadedModel, parameters: TrainSwitch) -> list[Exchange]:
    """What the fit is given; validation and monitor keep to the prompts as they are."""
    if parameters.augment is None:
        return exchanges
    augment = Augment(**parameters.augment.model_dump())
    return insert_tokens(exchanges, base.tokenizer, augment, max_length=parameters.max_length, seed=parameters.seed)


def _prompts(exchanges: Sequence[Exchange]) -> list[tuple[int, ...]]:
    """What the served model reads before it answers; of a plain text, which has no prompt, all of it."""
    return [one.ids[: one.answer_start] if one.answer_start > 1 else one.ids for one in exchanges]


def _measure(
    job: JobContext,
    suffix: str,
    mappers: Mapping[Site, Mapper],
    tuned: LoadedModel,
    base: LoadedModel,
    validation: Sequence[Exchange],
) -> dict[str, float]:
    """What the held-out exchanges say, named ``<figure>_<suffix>``; raises TrainingError for what is not finite."""
    job.stage(f"measuring with the switch {suffix}")
    measured = evaluate_switch(mappers, tuned, base, validation)
    if odd := [name for name, value in measured.items() if not isfinite(value)]:
        raise TrainingError(f"with the switch {suffix}, {', '.join(odd)} is not finite: load the models in float32")
    return {f"{name}_{suffix}": value for name, value in measured.items()}


def _fit(
    job: JobContext,
    parameters: TrainSwitch,
    tuned: LoadedModel,
    base: LoadedModel,
    training: Sequence[Exchange],
    validation: Sequence[Exchange],
) -> tuple[dict[Site, Mapper], dict[str, JsonValue]]:
    """The mappers and how the fit ended (nothing for a closed form)."""
    sites = sorted(site.site() for site in parameters.sites)
    shape = mapper_config(parameters, tuned.stack.width, tuned.stack.width)
    if (solve := solver(parameters)) is not None:
        job.stage("fitting", 0, len(sites))
        mappers: dict[Site, Mapper] = {}
        for site, mapper in solve_switch(tuned, base, sites, training, solve, batch_size=parameters.batch_size):
            mappers[site] = mapper
            job.stage("fitting", len(mappers), len(sites))
        return mappers, {}
    config = training_config(parameters, rows=len(training), batch_size=parameters.batch_size)
    fit = Fit.fresh(dict.fromkeys(sites, shape), config, device=job.device)
    attack = None if parameters.attack is None else Attack(**parameters.attack.model_dump())
    ended = run_fit(job, fit, train(fit, tuned, base, training, validation, attack=attack))
    return dict(fit.mappers), ended
