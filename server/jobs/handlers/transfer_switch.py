"""``transfer_switch``: a switch of a reference model made into one of the served model through affine maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite

from pydantic import JsonValue

from mappers.activations.pairs import Pairs, Reader, concatenate, paired_activations
from mappers.behaviour import switching
from mappers.errors import DataError
from mappers.loading import LoadedModel
from mappers.manifest import Manifest
from mappers.modules import Mapper
from mappers.pair_sums import PairSums
from mappers.sites import Site
from mappers.tensors import load_switch, save_switch
from mappers.training import evaluate_mapper
from mappers.transfer import transfer_switch as conjugate
from server.jobs.context import JobContext, binding
from server.jobs.handlers.fitting import split
from server.jobs.handlers.marking import marker_rates
from server.jobs.handlers.prompts import Texts, texts_of_both
from server.jobs.specs.vectors import TransferSwitch

_BATCH = 16


def transfer_switch(job: JobContext, parameters: TransferSwitch) -> None:
    """Stages ``h + s (g(f(m(h))) - g(m(h)))`` at each target site; ``m`` and ``g`` are the maps there and back.

    Raises ArtifactMismatch where the switch and its model no longer agree, DataError for unfit data.
    """
    manifest, switches = load_switch(job.path(parameters.switch))
    assert manifest.target is not None
    source, target = job.load_bound(manifest.target), job.load(job.order.served)
    texts = texts_of_both(source, target, job.rows(parameters.dataset), parameters.max_length)
    training, held = split(texts, parameters.validation_fraction, parameters.seed)
    mappers: dict[Site, Mapper] = {}
    effect: dict[str, float] = {}
    for number, pair in enumerate(parameters.sites):
        job.stage("fitting the maps", number, len(parameters.sites))
        ends = _Ends(parameters, source, target, pair.source.site(), pair.target.site())
        into, back = ends.fit(training)
        effect |= ends.measure(held, into, back)
        mappers[ends.target_site] = conjugate(switches[ends.source_site], into, back, strength=parameters.strength)
    if parameters.check is not None:
        mappers = {site: mapper.to(job.device) for site, mapper in mappers.items()}
        dialled = {
            f"on@{strength:g}": {site: switching(mapper, strength) for site, mapper in mappers.items()}
            for strength in parameters.check.strengths
        }
        effect |= marker_rates(job, target, parameters.check, {"off": {}, **dialled})
    facts: dict[str, JsonValue] = {
        "job": job.order.job_id,
        "dataset": job.dataset_facts(parameters.dataset),
        "parameters": parameters.stored(),
        "texts": len(training),
        "validation_texts": len(held),
        "source_switch": dict(manifest.training),
    }
    carried = {str(pair.target.site()): str(pair.source.site()) for pair in parameters.sites}
    made = Manifest(
        kind="switch",
        name=job.order.spec.name,
        created_at=job.order.created_at,
        target=binding(job.order.served, target),
        source=manifest.target,
        sites=tuple(map(str, sorted(mappers))),
        source_sites=tuple(carried[str(site)] for site in sorted(mappers)),
        mapper=next(iter(mappers.values())).config,
        dtype="float32",
        training=facts,
        effect=effect,
        parents=(job.parent("switch", parameters.switch), job.parent("dataset", parameters.dataset)),
        transfer={"rule": "conjugation", "switch": manifest.name},
    )
    save_switch(job.staging, mappers, made)


class _Ends:
    """A site of each model, and the texts' activations there."""

    def __init__(
        self, parameters: TransferSwitch, source: LoadedModel, target: LoadedModel, source_site: Site, target_site: Site
    ) -> None:
        self._parameters = parameters
        self._source = source
        self._target = target
        self.source_site = source_site
        self.target_site = target_site

    def fit(self, texts: Sequence[Texts]) -> tuple[Mapper, Mapper]:
        """The map from target to source and the map back, in closed form; raises DataError for unfit texts."""
        widths = self._source.stack.width, self._target.stack.width
        back, into = PairSums(*widths), PairSums(*reversed(widths))
        for pairs in self._pairs(texts):
            back.add(pairs.x_NS, pairs.y_ND)
            into.add(pairs.y_ND, pairs.x_NS)
        if back.tokens == 0:
            raise DataError("the two models share no token of these texts: use other texts or another alignment")
        return into.ridge(ridge=self._parameters.ridge), back.ridge(ridge=self._parameters.ridge)

    def measure(self, texts: Sequence[Texts], into: Mapper, back: Mapper) -> dict[str, float]:
        """Unexplained variance of both maps on texts that were held out; empty without any."""
        pairs = list(self._pairs(texts))
        if not pairs:
            return {}
        whole = concatenate(pairs)
        found = {
            f"fvu_into.{self.target_site}": evaluate_mapper(into, Pairs(whole.y_ND, whole.x_NS))["fvu"],
            f"fvu_back.{self.target_site}": evaluate_mapper(back, whole)["fvu"],
        }
        return {name: value for name, value in found.items() if isfinite(value)}

    def _pairs(self, texts: Sequence[Texts]) -> Iterator[Pairs]:
        source = Reader(self._source, self.source_site, [ours for ours, _ in texts])
        target = Reader(self._target, self.target_site, [theirs for _, theirs in texts])
        return paired_activations(source, target, self._parameters.alignment, batch_size=_BATCH)
