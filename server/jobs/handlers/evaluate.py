"""``evaluate``: what a switch and vectors do to answers, beside the same prompts without them and with controls.

Scores of one prompt are numbers in [0, 1]; every figure is a mean over prompts with its bootstrap interval.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue
from torch import Tensor

from mappers.dataset import DatasetRow
from mappers.errors import ArtifactMismatch, DataError
from mappers.loading import LoadedModel
from mappers.manifest import Manifest
from mappers.measures.intervals import mean_over_seeds, paired_difference
from mappers.measures.text import exact_match, rouge_l
from mappers.rendering import render
from mappers.report import save_report
from mappers.tensors import load_switch, load_vector
from mappers.vectors import random_vector
from server.evaluation.answering import Answerer, Asked, steered, switched
from server.jobs.context import JobContext, binding
from server.jobs.specs.evaluations import Evaluate

if TYPE_CHECKING:
    from server.interventions.catalog import ResolvedIntervention

Scores = Mapping[str, Sequence[float]]
"""Name of a score -> one value a prompt."""


@dataclass(frozen=True, slots=True)
class _Arm:
    """A setting: a model, and what is done for each prompt."""

    loaded: LoadedModel
    edits: Sequence[tuple[ResolvedIntervention, ...]]


def evaluate(job: JobContext, parameters: Evaluate) -> None:
    """Stages the report. Raises DataError for unfit prompts, ArtifactMismatch for an artifact of another model."""
    served = job.load(job.order.served)
    rows = _rows(job, parameters, served)
    arms = _arms(job, parameters, served, len(rows))
    texts = {name: _answers(job, parameters, name, arm, rows) for name, arm in arms.items()}
    scores = {name: _scores(parameters, rows, answers, texts.get("base")) for name, answers in texts.items()}
    figures: dict[str, Any] = {name: _figures(found) for name, found in scores.items()}
    content: dict[str, JsonValue] = {
        "model": job.order.served,
        "parameters": parameters.stored(),
        "prompts": len(rows),
        "arms": figures,
        "on_less_off": {
            name: asdict(paired_difference(scores["on"][name], scores["off"][name])) for name in scores["off"]
        },
    }
    effect = {f"{name}_{arm}": found["value"] for arm, these in figures.items() for name, found in these.items()}
    manifest = Manifest(
        kind="report",
        name=job.order.spec.name,
        created_at=job.order.created_at,
        target=binding(job.order.served, served),
        training={"job": job.order.job_id, "parameters": parameters.stored()},
        effect=effect,
        parents=tuple(job.parent(role, reference) for role, reference in _inputs(parameters)),
    )
    save_report(job.staging, content, {"scores": _bars(figures)}, manifest)


def _inputs(parameters: Evaluate) -> list[tuple[str, str]]:
    switch = [("switch", parameters.switch.switch)] if parameters.switch else []
    return [("prompts", parameters.prompts), *switch, *(("vector", used.vector) for used in parameters.vectors)]


def _rows(job: JobContext, parameters: Evaluate, served: LoadedModel) -> list[DatasetRow]:
    fitting = [
        row
        for row in job.rows(parameters.prompts)
        if 0 < len(render(served.tokenizer, row).ids) <= parameters.max_length
    ]
    if not fitting:
        raise DataError(f"no row of {parameters.prompts!r} has 1 to {parameters.max_length} tokens: raise max_length")
    return random.Random(parameters.seed).sample(fitting, min(parameters.limit, len(fitting)))


def _arms(job: JobContext, parameters: Evaluate, served: LoadedModel, count: int) -> dict[str, _Arm]:
    """Off, on, and as controls: random directions of the vectors' norms in their place, and the base model."""
    switch: tuple[ResolvedIntervention, ...] = ()
    if parameters.switch is not None:
        manifest, mappers = load_switch(job.path(parameters.switch.switch))
        _check_bound(manifest, served)
        on_device = {site: mapper.to(job.device) for site, mapper in mappers.items()}
        switch = (switched(on_device, parameters.switch.strength),)
    vectors = _vectors(job, parameters, served)
    arms = {"off": _Arm(served, [()] * count), "on": _Arm(served, [switch + vectors] * count)}
    if vectors:
        # One direction can be lucky: every prompt gets another.
        controls = [switch + tuple(_random(one, parameters.seed + place) for one in vectors) for place in range(count)]
        arms["random"] = _Arm(served, controls)
    if parameters.base is not None:
        arms["base"] = _Arm(job.load(parameters.base), [()] * count)
    return arms


def _vectors(job: JobContext, parameters: Evaluate, served: LoadedModel) -> tuple[ResolvedIntervention, ...]:
    found = []
    for used in parameters.vectors:
        manifest, directions = load_vector(job.path(used.vector))
        _check_bound(manifest, served)
        for site, v_D in directions.items():
            found.append(steered(v_D.to(job.device), [site], used.strength, used.operation))
    return tuple(found)


def _random(one: ResolvedIntervention, seed: int) -> ResolvedIntervention:
    site, v_D = next(iter(one.effects.items()))
    assert isinstance(v_D, Tensor)
    other_D = random_vector(len(v_D), float(v_D.norm()), seed).to(v_D.device)
    made = steered(other_D, [site], one.strength)
    return replace(made, operation=one.operation)


def _check_bound(manifest: Manifest, served: LoadedModel) -> None:
    if manifest.target is None or not manifest.target.fits(served.config_digest, served.weight_digest):
        raise ArtifactMismatch(f"{manifest.name!r} was made for another model than the served one: transfer it first")


def _answers(job: JobContext, parameters: Evaluate, name: str, arm: _Arm, rows: Sequence[DatasetRow]) -> list[str]:
    seen = 0

    def done(count: int) -> None:
        nonlocal seen
        seen += count
        job.stage(f"answering, {name}", seen, len(rows))

    asked = [Asked(row, edits) for row, edits in zip(rows, arm.edits, strict=True)]
    with Answerer(arm.loaded, rows=parameters.batch_size) as answerer:
        return answerer.answers(asked, max_tokens=parameters.max_new_tokens, done=done)


def _scores(
    parameters: Evaluate, rows: Sequence[DatasetRow], texts: Sequence[str], base: Sequence[str] | None
) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = {"answered": [float(bool(text.split())) for text in texts]}
    if parameters.marker is not None:
        scores["marker"] = [float(parameters.marker in text) for text in texts]
    wanted = [row.answer for row in rows]
    if all(answer is not None for answer in wanted):
        scores["exact_match"] = [float(exact_match(t, w or "")) for t, w in zip(texts, wanted, strict=True)]
        scores["rouge_l"] = [rouge_l(t, w or "") for t, w in zip(texts, wanted, strict=True)]
    if base is not None:
        scores["rouge_l_to_base"] = [rouge_l(text, reference) for text, reference in zip(texts, base, strict=True)]
        scores["same_as_base"] = [float(exact_match(t, b)) for t, b in zip(texts, base, strict=True)]
    return scores


def _figures(scores: Scores) -> dict[str, dict[str, float]]:
    return {name: asdict(mean_over_seeds([values])) for name, values in scores.items()}


def _bars(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> bytes:
    """Every score under every arm, with its interval, as a PNG."""
    from io import BytesIO

    from matplotlib.figure import Figure  # takes a second, and reads its configuration

    names = list(next(iter(figures.values())))
    figure = Figure(figsize=(2.5 + 1.5 * len(names), 4), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(figures)
    for number, (arm, found) in enumerate(figures.items()):
        places = [place + width * (number - (len(figures) - 1) / 2) for place in range(len(names))]
        values = [found[name]["value"] for name in names]
        below = [max(0.0, found[name]["value"] - found[name]["low"]) for name in names]
        above = [max(0.0, found[name]["high"] - found[name]["value"]) for name in names]
        axes.bar(places, values, width=0.9 * width, yerr=[below, above], capsize=3, label=arm)
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set(ylim=(0, 1.08), ylabel="mean over prompts")
    axes.legend(ncols=len(figures), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
