"""What a sweep tries: a direction or a mapper for every site, and what is known of the sites before anything is tried.

Shapes: N tokens, R prompts, S width of the source model, D width of the swept model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mappers.activations.collect import collect
from mappers.dataset import DatasetRow
from mappers.errors import ArtifactMismatch, DataError
from mappers.exchanges import Exchange, OpenPrompt, answer_prompts, read_rows, require_twins
from mappers.loading import LoadedModel
from mappers.manifest import Parent
from mappers.modules import Mapper
from mappers.pair_sums import PairSums
from mappers.rendering import Rendered, render
from mappers.similarity import Similarity, similarities
from mappers.sites import Place, Site
from mappers.tensors import load_vector
from mappers.transfer_grid import Side, aligned_sites, map_vector
from mappers.vectors import difference_in_means, rescale, text_activations
from server.jobs.context import JobContext
from server.jobs.handlers.prompts import read_prompts
from server.jobs.specs.sweeps import Contrast, MappedVector, RidgeSwitch, StoredVector, SweepSites
from server.jobs.specs.vectors import DATASET_ROLES

_PAIRS_KEPT = 32_768
_TOKENS_COMPARED = 2048


@dataclass(frozen=True, slots=True)
class Edits:
    """A direction or a mapper for each place; ``native`` are the swept model's own directions, where others are tried.

    ``predictors`` holds, by name, one figure for each place; ``parents`` are the artifacts that were used.
    """

    effects: Mapping[Place, Tensor | Mapper]
    native: Mapping[Site, Tensor] = field(default_factory=dict)
    predictors: Mapping[str, Mapping[Place, float]] = field(default_factory=dict)
    parents: tuple[Parent, ...] = ()


def build_edits(job: JobContext, parameters: SweepSites, loaded: LoadedModel, sites: Sequence[Site]) -> Edits:
    """Everything the sweep is going to try at ``sites``.

    Raises DataError for unfit data, ArtifactMismatch for a vector of another model or other sites.
    """
    match parameters.edit:
        case StoredVector() as edit:
            return _stored(job, edit, loaded, sites if parameters.sites else None)
        case RidgeSwitch() as edit:
            return _switches(job, parameters, edit, loaded, sites)
        case MappedVector() as edit:
            return _mapped(job, parameters, edit, loaded, sites)
        case edit:
            vectors = _contrast(job, parameters, edit, loaded, sites)
            return Edits({(None, site): v_D for site, v_D in vectors.items()}, parents=_datasets(job, edit))


def _stored(job: JobContext, edit: StoredVector, loaded: LoadedModel, sites: Sequence[Site] | None) -> Edits:
    """``sites`` None are those of the vector."""
    manifest, vectors = load_vector(job.path(edit.vector))
    if manifest.target is None or not manifest.target.fits(loaded.config_digest, loaded.weight_digest):
        raise ArtifactMismatch(f"{manifest.name!r} is no vector of {loaded.name!r}: extract or transfer one for it")
    if missing := [str(site) for site in sites or () if site not in vectors]:
        raise ArtifactMismatch(f"{manifest.name!r} has no vector at {', '.join(missing)}: leave these sites out")
    device = next(loaded.model.parameters()).device
    found: dict[Place, Tensor | Mapper] = {(None, site): vectors[site].to(device) for site in sites or vectors}
    return Edits(found, parents=(job.parent("vector", edit.vector),))


def _contrast(
    job: JobContext, parameters: SweepSites, edit: Contrast, loaded: LoadedModel, sites: Sequence[Site]
) -> dict[Site, Tensor]:
    """The difference in means at each site."""
    means: dict[str, dict[Site, Tensor]] = {}
    for number, role in enumerate(DATASET_ROLES):
        job.stage(f"reading {role} prompts of {loaded.name}"[:96], number, len(DATASET_ROLES))
        answers = edit.position == "answer"
        prompts = read_prompts(job, loaded, getattr(edit, role), parameters.max_length, answers=answers)
        means[role] = text_activations(loaded, sites, prompts, position=edit.position, batch_size=parameters.batch_size)
    positive, negative = means["positive"], means["negative"]
    device = next(loaded.model.parameters()).device
    vectors = {site: difference_in_means(positive[site], negative[site]).to(device) for site in sites}
    if silent := [str(site) for site, v_D in vectors.items() if not bool(v_D.any())]:
        raise DataError(f"positive and negative have the same mean at {', '.join(silent)}: use two different datasets")
    return vectors


def _switches(
    job: JobContext, parameters: SweepSites, edit: RidgeSwitch, tuned: LoadedModel, sites: Sequence[Site]
) -> Edits:
    base = job.load(edit.base)
    require_twins(tuned, base)
    entries = list(read_rows(tuned, job.rows(edit.dataset), max_length=parameters.max_length))
    sequences = [exchange.ids for exchange in _answered(job, base, entries, parameters)]
    width, batches = tuned.stack.width, -(-len(sequences) // parameters.batch_size)
    sums = {site: PairSums(width, width) for site in sites}
    predictors: dict[str, dict[Place, float]] = {"cka": {}, "svcca": {}}
    reading = (collect(model, sites, sequences, batch_size=parameters.batch_size) for model in (tuned, base))
    for number, (ours, theirs) in enumerate(zip(*reading, strict=True)):
        job.stage("fitting switches", number, batches)
        for site in sites:
            x_ND, y_ND = ours.real(site).cpu(), theirs.real(site).cpu()
            sums[site].add(x_ND, y_ND)
            if number == batches - 1:  # the longest texts, and with them the most tokens
                alike = similarities({site: x_ND[:_TOKENS_COMPARED]}, {site: y_ND[:_TOKENS_COMPARED]})[site, site]
                predictors["cka"][None, site], predictors["svcca"][None, site] = alike.cka, alike.svcca
    device = next(tuned.model.parameters()).device
    effects: dict[Place, Tensor | Mapper] = {
        (None, site): found.ridge(ridge=edit.ridge, residual=edit.residual).to(device) for site, found in sums.items()
    }
    return Edits(effects, {}, predictors, (job.parent("dataset", edit.dataset),))


def _answered(
    job: JobContext, base: LoadedModel, entries: Sequence[Exchange | OpenPrompt], parameters: SweepSites
) -> list[Exchange]:
    if not entries:
        raise DataError("no row of the dataset fits max_length: raise it or shorten the rows")
    exchanges = [entry for entry in entries if isinstance(entry, Exchange)]
    prompts = [entry for entry in entries if isinstance(entry, OpenPrompt)]
    for number, (_, exchange) in enumerate(
        answer_prompts(base, prompts, max_new_tokens=parameters.max_new_tokens, batch_size=parameters.batch_size)
    ):
        job.stage("answering for the fit", number + 1, len(prompts))
        exchanges.append(exchange)
    return exchanges


def _mapped(
    job: JobContext, parameters: SweepSites, edit: MappedVector, loaded: LoadedModel, sites: Sequence[Site]
) -> Edits:
    source = job.load(edit.source)
    source_sites = tuple(sorted(s.site() for s in edit.source_sites)) if edit.source_sites else source.stack.sites
    theirs = _contrast(job, parameters, edit, source, source_sites)
    native = _contrast(job, parameters, edit, loaded, sites)
    rows = job.rows(edit.texts)
    job.stage("reading common texts")
    x, y = aligned_sites(
        Side(source, source_sites, [_rendered(source, row) for row in rows]),
        Side(loaded, tuple(sites), [_rendered(loaded, row) for row in rows]),
        edit.alignment,
        batch_size=parameters.batch_size,
        limit=_PAIRS_KEPT,
    )
    effects: dict[Place, Tensor | Mapper] = {}
    for number, (site, v_S) in enumerate(theirs.items()):
        job.stage("mapping vectors", number, len(theirs))
        for target, v_D in map_vector(v_S.cpu(), x[site], y, ridge=edit.ridge).items():
            effects[site, target] = rescale(v_D.to(native[target].device), float(native[target].norm()))
    alike = similarities(_sample(x), _sample(y))
    predictors = {"cka": _figure(alike, "cka"), "svcca": _figure(alike, "svcca")}
    return Edits(effects, native, predictors, (*_datasets(job, edit), job.parent("texts", edit.texts)))


def _rendered(loaded: LoadedModel, row: DatasetRow) -> Rendered:
    return render(loaded.tokenizer, row, answer=row.answer)


def _sample(activations: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    """Tokens from all over, as many as the comparison can use."""
    return {site: x_NS[:: -(-len(x_NS) // _TOKENS_COMPARED)] for site, x_NS in activations.items()}


def _figure(alike: Mapping[tuple[Site, Site], Similarity], name: str) -> dict[Place, float]:
    return {place: getattr(found, name) for place, found in alike.items()}


def _datasets(job: JobContext, edit: Contrast) -> tuple[Parent, ...]:
    return tuple(job.parent(role, getattr(edit, role)) for role in DATASET_ROLES)
