"""One vector of a source model carried to a target model by every kind of mapper, judged by what the target says.

Shapes: R prompts, S width of the source, D width of the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Final

from torch import Tensor

from mappers.dataset import DatasetRow
from mappers.loading import LoadedModel
from mappers.measures.likelihood import perplexity
from mappers.modules import Mapper
from mappers.rendering import render
from mappers.sites import Site
from mappers.training import evaluate_mapper
from mappers.vectors import TextPosition, cosine, difference_in_means, rescale, text_activations, transfer_by_pairs
from server.evaluation.answering import Answerer, Asked, Done
from server.evaluation.lab import Lab
from server.evaluation.ledger import Figures
from server.evaluation.mapping import KINDS, MappingRecipe, fit_mapper
from server.evaluation.pairing import PairedSites, read_pairs
from server.evaluation.questions import Questions, Wanted
from server.evaluation.steering import Candidate, Picked, Trial, pick, random_candidate, random_controls
from server.types import Operation

ARMS: Final = ("unsteered", "native", "mapped", "random")
"""What every transfer is compared with; further arms are the kinds of mapper."""

_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Aim:
    """What a vector is for.

    ``positive`` less ``negative`` rows make it (:func:`means_of`). It acts on ``held_out`` questions with a strength
    out of ``strengths`` (multiples of the native vector's norm), at one site or ``everywhere``. ``wanted`` says what
    counts: answers that are "right", or in which the behaviour "shows" or "hides". ``ordinary`` questions show what
    steering costs: right answers to them, and the perplexity of the wanted ones. ``inside`` is that of the trial.
    """

    positive: Sequence[DatasetRow]
    negative: Sequence[DatasetRow]
    validation: Questions
    held_out: Questions
    wanted: Wanted
    strengths: Sequence[float]
    operation: Operation = "add"
    everywhere: bool = False
    ordinary: Questions | None = None
    inside: bool = False

    def judge(self, questions: Questions, texts: Sequence[str]) -> str:
        """Packed verdicts: "1" where the answer is what the vector is for."""
        return questions.verdicts(self.wanted, texts)


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A mapped vector with the figures of its mapper."""

    recipe: MappingRecipe
    source_site: Site
    candidate: Candidate
    fvu: float
    cosine: float


def measure_transfer(
    lab: Lab, source: LoadedModel, target: LoadedModel, texts: tuple[Sequence[DatasetRow], Sequence[DatasetRow]],
    aim: Aim, seed: int,
) -> Figures:  # fmt: skip
    """Verdicts on held-out prompts: unsteered, native, mapped by each kind and by the one validation picked, random.

    ``texts`` are those that mappers are fitted and validated on. The native vector's site and strength, and each
    mapper's source site and strength, are picked by behaviour on validation prompts; mapped vectors are given the
    native norm before. Of mappers that do equally well the one nearest to the native direction is picked. What is
    trained by gradients is fitted from the source site that served ridge best.
    """
    lab.report("reading texts", 0, None)
    training, validation = (read_pairs(source, target, rows) for rows in texts)
    native_at = means_of(target, aim.positive, aim.negative)
    trial = Trial(
        aim.validation.prompts,
        lambda texts: aim.judge(aim.validation, texts),
        lab.max_tokens,
        aim.operation,
        aim.inside,
    )
    with lab.answering(target) as answerer:
        sites = target.stack.sites if aim.everywhere else ()
        candidates = [Candidate(site, v_D, sites) for site, v_D in native_at.items()]
        native = pick(answerer, {"native": candidates}, aim.strengths, trial, _progress(lab, "native vector"))["native"]
        means = {role: _rows(source, getattr(aim, role)) for role in ("positive", "negative")}
        mapped: dict[str, list[_Mapped]] = {}
        best_source: Site | None = None
        picked: dict[str, Picked] = {}
        for recipe in KINDS:
            read_at = source.stack.sites if not recipe.steps or best_source is None else (best_source,)
            made = [_map(recipe, s, native.candidate, training, validation, means, seed, lab) for s in read_at]
            mapped[recipe.kind] = made
            label: str = recipe.kind
            those = {label: [one.candidate for one in made]}
            picked |= pick(answerer, those, aim.strengths, trial, _progress(lab, f"mapped by {label}"))
            best_source = best_source or _found(made, picked[label]).source_site
        best = max(picked, key=lambda label: (picked[label].score, _found(mapped[label], picked[label]).cosine))
        arms = _held_out(lab, answerer, aim, native, picked, best, seed)
    return {
        "wanted": aim.wanted,
        "target_site": str(native.candidate.site),
        "picked": best,
        "arms": {arm: dict(found) for arm, found in arms.items()},
        "native": _chosen(native),
        "mapped": {label: _chosen(one) | _of_mapper(_found(mapped[label], one)) for label, one in picked.items()},
        "perplexity": _perplexities(target, aim, native, picked[best], seed),
    }


def _perplexities(target: LoadedModel, aim: Aim, native: Picked, mapped: Picked, seed: int) -> Figures:
    """Perplexity of the wanted answers to ordinary questions, unsteered and under each vector."""
    if aim.ordinary is None:
        return {}
    rows = [DatasetRow(prompt=question.prompt, completion=question.wanted) for question in aim.ordinary.asked]
    control = replace(mapped, candidate=random_candidate(mapped.candidate, seed))
    found: Figures = {"unsteered": perplexity(target, rows)}
    for arm, one in (("native", native), ("mapped", mapped), ("random", control)):
        found[arm] = perplexity(target, rows, callbacks=one.candidate.callbacks(one.strength, aim.operation))
    return found


def means_of(loaded: LoadedModel, positive: Sequence[DatasetRow], negative: Sequence[DatasetRow]) -> dict[Site, Tensor]:
    """The difference in means of two sets of rows, ``v_D`` at every site.

    Prompts are read at their last token, rows with answers where these are predicted.
    """
    means = [_rows(loaded, rows) for rows in (positive, negative)]
    return {site: difference_in_means(means[0][site], means[1][site]) for site in loaded.stack.sites}


def _rows(loaded: LoadedModel, rows: Sequence[DatasetRow]) -> dict[Site, Tensor]:
    texts = [render(loaded.tokenizer, row, answer=row.answer) for row in rows]
    position: TextPosition = "last" if texts[0].answer_start is None else "answer"
    return text_activations(loaded, loaded.stack.sites, texts, position=position, batch_size=_BATCH)


def _map(
    recipe: MappingRecipe, source_site: Site, native: Candidate, training: PairedSites, validation: PairedSites,
    means: Mapping[str, Mapping[Site, Tensor]], seed: int, lab: Lab,
) -> _Mapped:  # fmt: skip
    mapper: Mapper = fit_mapper(recipe, training.between(source_site, native.site), seed, lab.report)
    fvu = evaluate_mapper(mapper, validation.between(source_site, native.site))["fvu"]
    mapped_D = transfer_by_pairs(mapper, means["positive"][source_site], means["negative"][source_site])
    mapped_D = mapped_D.to(native.v_D)
    scaled_D = rescale(mapped_D, float(native.v_D.norm()))
    return _Mapped(recipe, source_site, replace(native, v_D=scaled_D), fvu, cosine(mapped_D, native.v_D))


def _held_out(
    lab: Lab, answerer: Answerer, aim: Aim, native: Picked, picked: Mapping[str, Picked], best: str, seed: int
) -> dict[str, Figures]:
    prompts = aim.held_out.prompts

    def under(one: Picked) -> list[Asked]:
        intervention = one.candidate.steering(one.strength, aim.operation)
        return [Asked(prompt, (intervention,)) for prompt in prompts]

    asked = {
        "unsteered": [Asked(prompt) for prompt in prompts],
        "native": under(native),
        "mapped": under(picked[best]),
        "random": random_controls(prompts, picked[best], seed, aim.operation),
        **{label: under(one) for label, one in picked.items()},
    }
    ordinary = aim.ordinary.prompts if aim.ordinary is not None else []
    retained = {
        arm: [Asked(prompt, one.interventions) for prompt, one in zip(ordinary, cycle(those), strict=False)]
        for arm, those in asked.items()
        if arm in ARMS
    }
    rows = [one for those in (*asked.values(), *retained.values()) for one in those]
    texts = iter(answerer.answers(rows, max_tokens=lab.max_tokens))
    found = {arm: [next(texts) for _ in those] for arm, those in asked.items()}
    judged = {
        arm: aim.held_out.judged(those) | {"wanted": aim.judge(aim.held_out, those)} for arm, those in found.items()
    }
    if aim.ordinary is not None:
        for arm, those in retained.items():
            judged[arm]["ordinary"] = aim.ordinary.verdicts("right", [next(texts) for _ in those])
    return judged


def _found(made: Sequence[_Mapped], picked: Picked) -> _Mapped:
    return next(one for one in made if one.candidate is picked.candidate)


def _chosen(one: Picked) -> Figures:
    return {"strength": one.strength, "validation": one.score, "norm": float(one.candidate.v_D.norm())}


def _of_mapper(one: _Mapped) -> Figures:
    return {"source_site": str(one.source_site), "fvu": one.fvu, "cosine_to_native": one.cosine}


def _progress(lab: Lab, stage: str) -> Done:
    seen = 0

    def done(count: int) -> None:
        nonlocal seen
        seen += count
        lab.report(f"answering, {stage}", seen, None)

    return done
