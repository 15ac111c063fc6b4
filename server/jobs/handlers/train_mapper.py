"""``train_mapper``: a map from a site of a reference model to a site of the served model, fitted on common texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import isfinite

from pydantic import JsonValue

from mappers.activations.masks import Mask
from mappers.activations.pairs import Pairs, Reader, concatenate, paired_activations
from mappers.errors import DataError, TrainingError
from mappers.fit import Fit
from mappers.loading import LoadedModel
from mappers.manifest import Manifest
from mappers.modules import Mapper
from mappers.pair_sums import PairSums
from mappers.tensors import save_mapper
from mappers.training import evaluate_mapper
from mappers.training import train_mapper as train
from server.jobs.context import JobContext, binding
from server.jobs.handlers.fitting import (
    mapper_config,
    require_precision,
    run_fit,
    solver,
    split,
    training_config,
    training_facts,
)
from server.jobs.handlers.prompts import Texts, texts_of_both
from server.jobs.specs.fits import TrainMapper

_TEXTS_A_BATCH = 16
_MAX_KEPT_BYTES = 8 << 30


def train_mapper(job: JobContext, parameters: TrainMapper) -> None:
    """Stages the mapper. Raises DataError for unfit data or models, TrainingError for a fit that fails."""
    require_precision(job, parameters)
    source, target = job.load(parameters.source), job.load(job.order.served)
    rows = texts_of_both(source, target, job.rows(parameters.dataset), parameters.max_length)
    training, validation = split(rows, parameters.validation_fraction, parameters.seed)
    collector = _Collector(job, parameters, source, target)
    collector.measure_norms(training)
    held_out = collector.all_pairs("reading held-out texts", validation)
    if (solve := solver(parameters)) is not None:
        mapper, ended = _solve(collector, solve, training)
    else:
        mapper, ended = _train(job, collector, parameters, training, held_out)
    facts: dict[str, JsonValue] = {
        "masked": dict(collector.masked),
        "texts": len(training),
        "validation_texts": len(validation),
    }
    effect = evaluate_mapper(mapper, held_out) if held_out is not None else {}
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
        training=facts | ended | training_facts(job, parameters),
        effect=effect,
        parents=(job.parent("dataset", parameters.dataset),),
    )
    save_mapper(job.staging, mapper, manifest)


class _Collector:
    """Reads aligned activations of both models; ``shape`` is that of the mapper between the two sites.

    ``masked`` counts the pairs that were left out, held-out ones too.
    """

    def __init__(self, job: JobContext, parameters: TrainMapper, source: LoadedModel, target: LoadedModel) -> None:
        self.job = job
        self._parameters = parameters
        self._source = source
        self._target = target
        self.shape = mapper_config(parameters, source.stack.width, target.stack.width)
        self._limits: tuple[float | None, float | None] = (None, None)
        self.masked = {"special_tokens": 0, "massive": 0}

    def pairs(self, stage: str, texts: Sequence[Texts]) -> Iterator[Pairs]:
        """Token pairs batch by batch, with progress."""
        source, target = self._readers(texts)
        batches = -(-len(texts) // _TEXTS_A_BATCH)
        found = paired_activations(
            source,
            target,
            self._parameters.alignment,
            batch_size=_TEXTS_A_BATCH,
            special_tokens=not self._parameters.mask.special_tokens,
        )
        for number, pairs in enumerate(found, start=1):
            self.job.stage(stage, number, batches)
            self.masked["special_tokens"] += pairs.special
            self.masked["massive"] += pairs.massive
            yield pairs

    def all_pairs(self, stage: str, texts: Sequence[Texts]) -> Pairs | None:
        """All token pairs of the texts at once; None where there are none."""
        parts = [part for part in self.pairs(stage, texts) if len(part.x_NS)]
        return concatenate(parts) if parts else None

    def measure_norms(self, texts: Sequence[Texts]) -> None:
        """Takes the longest norms that are kept from ``texts``, where massive activations are to be left out."""
        mask = Mask(self._parameters.mask.massive)
        if mask.massive is not None:
            self.job.stage("measuring norms")
        ours, theirs = (
            mask.norm_limits(
                side.loaded, [side.site], [text.ids for text in side.texts], batch_size=_TEXTS_A_BATCH
            ).get(side.site)
            for side in self._readers(texts)
        )
        self._limits = ours, theirs

    def _readers(self, texts: Sequence[Texts]) -> tuple[Reader, Reader]:
        ours, theirs = self._limits
        return (
            Reader(self._source, self._parameters.source_site.site(), [text for text, _ in texts], ours),
            Reader(self._target, self._parameters.target_site.site(), [text for _, text in texts], theirs),
        )


def _solve(
    collector: _Collector, solve: Callable[[PairSums], Mapper], training: Sequence[Texts]
) -> tuple[Mapper, dict[str, JsonValue]]:
    shape = collector.shape
    products = shape.d_source**2 + shape.d_source * shape.d_target + shape.d_target**2
    # Sums in float64, and about as much again for the system that is solved.
    collector.job.require_memory(2 * 8 * products, "the closed form", "use narrower models, or free memory")
    sums = PairSums(shape.d_source, shape.d_target)
    for pairs in collector.pairs("fitting", training):
        sums.add(pairs.x_NS, pairs.y_ND)
    return solve(sums), {"tokens": sums.tokens}


def _train(
    job: JobContext,
    collector: _Collector,
    parameters: TrainMapper,
    training: Sequence[Texts],
    held_out: Pairs | None,
) -> tuple[Mapper, dict[str, JsonValue]]:
    site, shape = parameters.target_site.site(), collector.shape
    longest = sum(min(len(ours.ids), len(theirs.ids)) for ours, theirs in training)
    kept = longest * (shape.d_source + shape.d_target) * 4
    remedy = "use fewer rows, or mapper 'ridge', 'procrustes' or 'low_rank', which keep none"
    if kept > _MAX_KEPT_BYTES:
        raise DataError(
            f"the activations of about {longest} tokens do not fit into {_MAX_KEPT_BYTES >> 30} GiB: {remedy}"
        )
    # Twice: batches are joined at the end. Adam, the best mapper and a checkpoint keep five copies of its parameters.
    job.require_memory(2 * kept + 24 * shape.parameter_count, "training on kept activations", remedy)
    pairs = collector.all_pairs("reading activations", training)
    if pairs is None:
        raise TrainingError("no token pairs to train on: use other prompts or another alignment")
    tokens, batch_size = len(pairs.x_NS), parameters.batch_size
    if parameters.batch_texts is not None:
        batch_size = max(1, round(parameters.batch_texts * tokens / len(training)))
    config = training_config(parameters, rows=tokens, batch_size=batch_size)
    fit = Fit.fresh({site: shape}, config, device=job.device)
    ended = run_fit(job, fit, train(fit, site, pairs, held_out))
    return fit.mappers[site].cpu(), ended | {"tokens": tokens, "pairs_a_batch": batch_size}
