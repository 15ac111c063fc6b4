"""``train_probe``: a linear read-out that tells two kinds of prompts apart, with the threshold a gate fires at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import JsonValue

from mappers.errors import DataError
from mappers.loading import LoadedModel
from mappers.manifest import Manifest, ProbeFacts
from mappers.probes import Probe, auc, best_threshold, fit_logistic, highest_scores, roc, token_activations
from mappers.sites import Site
from mappers.tensors import save_probe
from server.jobs.context import JobContext, binding
from server.jobs.handlers.fitting import split
from server.jobs.handlers.prompts import read_prompts
from server.jobs.specs.probes import TrainProbe
from server.jobs.specs.vectors import DATASET_ROLES

_MAX_KEPT_BYTES = 4 << 30
_FEWEST_HELD_OUT = 4

Prompts = Mapping[str, Sequence[tuple[int, ...]]]
"""Token ids by role."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """Three sets of prompts: the probe is fitted on one, site and threshold are chosen on the next."""

    training: Prompts
    choice: Prompts
    report: Prompts


def train_probe(job: JobContext, parameters: TrainProbe) -> None:
    """Stages the probe of the best site. Raises DataError for unfit data, ArtifactMismatch for no such layer."""
    loaded = job.load(job.order.served)
    parts = _parts(job, loaded, parameters)
    probes = _fit(job, loaded, parameters, parts.training)
    scores = _scores(job, loaded, probes, parts.choice, parameters.batch_size)
    areas = {site: auc(*found) for site, found in scores.items()}
    site = max(areas, key=lambda one: (areas[one], -one.layer))
    on = best_threshold(*scores[site], parameters.false_positive_rate)
    probe = replace(probes[site], on=on, off=on + probes[site].off)
    positive, negative = _scores(job, loaded, {site: probe}, parts.report, parameters.batch_size)[site]
    facts = ProbeFacts(
        on=probe.on,
        off=probe.off,
        choice="youden" if parameters.false_positive_rate is None else "false_positive_rate",
        auc=auc(positive, negative),
        roc=roc(positive, negative),
    )
    manifest = Manifest(
        kind="probe",
        name=job.order.spec.name,
        created_at=job.order.created_at,
        target=binding(job.order.served, loaded),
        sites=(str(site),),
        probe=facts,
        dtype="float32",
        training=_facts(job, parameters, parts) | {"auc_by_site": {str(one): area for one, area in areas.items()}},
        effect={
            "auc": facts.auc,
            "true_positive_rate": sum(score > on for score in positive) / len(positive),
            "false_positive_rate": sum(score > on for score in negative) / len(negative),
        },
        parents=tuple(job.parent(role, getattr(parameters, role)) for role in DATASET_ROLES),
    )
    save_probe(job.staging, probe, manifest)


def _parts(job: JobContext, loaded: LoadedModel, parameters: TrainProbe) -> _Parts:
    training, choice, report = {}, {}, {}
    for role in DATASET_ROLES:
        prompts = read_prompts(job, loaded, getattr(parameters, role), parameters.max_length)
        ids = [prompt.ids for prompt in prompts]
        training[role], held = split(ids, parameters.validation_fraction, parameters.seed)
        if len(held) < _FEWEST_HELD_OUT:
            raise DataError(
                f"only {len(held)} {role} prompts are held out, and a threshold needs {_FEWEST_HELD_OUT}: add rows or "
                "raise validation_fraction"
            )
        choice[role], report[role] = held[::2], held[1::2]
    return _Parts(training, choice, report)


def _fit(job: JobContext, loaded: LoadedModel, parameters: TrainProbe, training: Prompts) -> dict[Site, Probe]:
    """A probe for each site, with thresholds that are still to be moved: 0, and below it the hysteresis."""
    sites = sorted(site.site() for site in parameters.sites)
    last = parameters.tokens == "last"
    tokens = sum(len(ids) if not last else 1 for prompts in training.values() for ids in prompts)
    kept = tokens * loaded.stack.width * len(sites) * 4
    what = f"the activations of {tokens} tokens at {len(sites)} sites"
    remedy = "name fewer sites, use fewer rows, or set tokens to last"
    if kept > _MAX_KEPT_BYTES:
        raise DataError(f"{what} do not fit into {_MAX_KEPT_BYTES >> 30} GiB: {remedy}")
    # Twice: batches are joined at the end.
    job.require_memory(2 * kept, f"keeping {what}", remedy)
    hidden = []
    for number, role in enumerate(DATASET_ROLES):
        job.stage(f"reading {role} prompts", number, len(DATASET_ROLES))
        hidden.append(token_activations(loaded, sites, training[role], last=last, batch_size=parameters.batch_size))
    probes = {}
    for number, site in enumerate(sites):
        job.stage("fitting", number, len(sites))
        positive_ND, negative_ND = hidden[0][site], hidden[1][site]
        fitted = Probe(*fit_logistic(positive_ND, negative_ND, l2=parameters.l2), 0.0, 0.0)
        spread = float(fitted.scores(negative_ND).std(correction=0))
        probes[site] = Probe(fitted.weight_D, fitted.bias, 0.0, -parameters.hysteresis * spread)
    return probes


def _scores(
    job: JobContext, loaded: LoadedModel, probes: Mapping[Site, Probe], prompts: Prompts, batch_size: int
) -> dict[Site, tuple[Sequence[float], Sequence[float]]]:
    """The highest scores of positive and of negative prompts."""
    found = []
    for role in DATASET_ROLES:
        job.stage(f"scoring held-out {role} prompts")
        found.append(highest_scores(loaded, probes, prompts[role], batch_size=batch_size))
    return {site: (found[0][site], found[1][site]) for site in probes}


def _facts(job: JobContext, parameters: TrainProbe, parts: _Parts) -> dict[str, JsonValue]:
    datasets: dict[str, JsonValue] = {
        role: job.dataset_facts(getattr(parameters, role))
        | {
            "prompts": len(parts.training[role]),
            "prompts_for_choice": len(parts.choice[role]),
            "prompts_for_report": len(parts.report[role]),
        }
        for role in DATASET_ROLES
    }
    return {
        "job": job.order.job_id,
        "method": "logistic",
        "parameters": parameters.stored(),
        "datasets": datasets,
        "model_dtype": job.order.execution.dtype,
    }
