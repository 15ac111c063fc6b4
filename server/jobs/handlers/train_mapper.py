"""``train_mapper``: a map from a site of a reference model to a site of the served model, fitted on common texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite

from pydantic import JsonValue

from mappers.activations.pairs import Pairs, Reader, concatenate, paired_activations
from mappers.errors import DataError
from mappers.fit import Fit
from mappers.loading import LoadedModel
from mappers.manifest import Manifest
from mappers.mapper_config import MapperConfig
from mappers.modules import Mapper
from mappers.ridge import RidgeSums
from mappers.tensors import save_mapper
from mappers.training import evaluate_mapper
from mappers.training import train_mapper as train
from server.jobs.context import JobContext, binding
from server.jobs.handlers.fitting import run_fit, split, training_config, training_facts
from server.jobs.handlers.prompts import Texts, texts_of_both
from server.jobs.specs.fits import TrainMapper

_TEXTS_A_BATCH = 16
_MAX_KEPT_BYTES = 8 << 30


def train_mapper(job: JobContext, parameters: TrainMapper) -> None:
    """Stages the mapper. Raises DataError for unfit data or models, TrainingError for a fit that fails."""
    source, target = job.load(parameters.source), job.load(job.order.served)
    rows = texts_of_both(source, target, job.rows(parameters.dataset), parameters.max_length)
    training, validation = split(rows, parameters.validation_fraction, parameters.seed)
    collector = _Collector(job, parameters, source, target)
    held_out = concatenate(list(collector.pairs("reading held-out texts", validation))) if validation else None
    if parameters.mapper == "ridge":
        mapper, tokens, losses = _solve(collector, parameters, training)
    else:
        mapper, tokens, losses = _train(job, collector, parameters, training, held_out)
    facts: dict[str, JsonValue] = {
        "losses": dict(losses),
        "texts": len(training),
        "validation_texts": len(validation),
        "tokens": tokens,
    }
    effect = evaluate_mapper(mapper, held_out) if held_out is not None and len(held_out.x_NS) else {}
    effect = {name: value for name, value in effect.items() if isfinite(value)}
    manifest = Manifest(
        kind="mapper",
        name=job.order.spec.name,
        created_at=job.order.created_at,
        target=binding(job.order.served, target),
        source=binding(parameters.source, source),
        sites=(str(parameters.target_site.site()),),
        source_sites=(str(parameters.source_site.site()),),
        mapper=mapper.config,
        dtype="float32",
        training=facts | training_facts(job, parameters),
        effect=effect,
        parents=(job.parent("dataset", parameters.dataset),),
    )
    save_mapper(job.staging, mapper, manifest)


class _Collector:
    """Reads aligned activations of both models."""

    def __init__(self, job: JobContext, parameters: TrainMapper, source: LoadedModel, target: LoadedModel) -> None:
        self._job = job
        self._parameters = parameters
        self._source = source
        self._target = target

    @property
    def shape(self) -> MapperConfig:
        """The shape of the mapper between the two sites; raises DataError where it is impossible."""
        widths = self._source.stack.width, self._target.stack.width
        if self._parameters.residual and widths[0] != widths[1]:
            raise DataError(f"residual needs equal widths, got {widths[0]} and {widths[1]}: set residual to false")
        return MapperConfig(
            kind=self._parameters.mapper,
            d_source=widths[0],
            d_target=widths[1],
            residual=self._parameters.residual,
            hidden=self._parameters.hidden,
        )

    def pairs(self, stage: str, texts: Sequence[Texts]) -> Iterator[Pairs]:
        """Token pairs batch by batch, with progress."""
        source = Reader(self._source, self._parameters.source_site.site(), [ours for ours, _ in texts])
        target = Reader(self._target, self._parameters.target_site.site(), [theirs for _, theirs in texts])
        batches = -(-len(texts) // _TEXTS_A_BATCH)
        found = paired_activations(source, target, self._parameters.alignment, batch_size=_TEXTS_A_BATCH)
        for number, pairs in enumerate(found, start=1):
            self._job.stage(stage, number, batches)
            yield pairs


def _solve(
    collector: _Collector, parameters: TrainMapper, training: Sequence[Texts]
) -> tuple[Mapper, int, dict[str, float]]:
    shape = collector.shape
    sums = RidgeSums(shape.d_source, shape.d_target)
    for pairs in collector.pairs("fitting", training):
        sums.add(pairs.x_NS, pairs.y_ND)
    return sums.solve(ridge=parameters.ridge, residual=parameters.residual), sums.tokens, {}


def _train(
    job: JobContext,
    collector: _Collector,
    parameters: TrainMapper,
    training: Sequence[Texts],
    held_out: Pairs | None,
) -> tuple[Mapper, int, dict[str, float]]:
    site, shape = parameters.target_site.site(), collector.shape
    longest = sum(min(len(ours.ids), len(theirs.ids)) for ours, theirs in training)
    if longest * (shape.d_source + shape.d_target) * 4 > _MAX_KEPT_BYTES:
        raise DataError(
            f"the activations of about {longest} tokens do not fit into {_MAX_KEPT_BYTES >> 30} GiB: use fewer rows, "
            "or mapper 'ridge', which keeps none"
        )
    pairs = concatenate(list(collector.pairs("reading activations", training)))
    fit = Fit.fresh({site: shape}, training_config(parameters), device=pairs.x_NS.device)
    losses = run_fit(job, fit, train(fit, site, pairs, held_out))
    return fit.mappers[site], len(pairs.x_NS), losses
