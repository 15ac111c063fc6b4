"""How much of a site does a mapper carry over? Full replacement with its control (arXiv 2503.04429, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from torch import Tensor

from mappers.loading import LoadedModel
from mappers.measures.text import rouge_l
from mappers.organisms.behaviours import Behaviour
from mappers.organisms.behaviours.code import INSECURE_CODE
from mappers.organisms.behaviours.ordinary import BACKDOOR
from mappers.sites import Site
from server.evaluation.experiment import Cell
from server.evaluation.experiments.tasks import PAIRS
from server.evaluation.lab import Lab
from server.evaluation.ledger import Figures
from server.evaluation.mapping import KINDS, fit_mapper
from server.evaluation.pairing import read_pairs
from server.evaluation.questions import Questions
from server.evaluation.replacement import Carry, Replacement
from server.evaluation.report import Section, Table
from server.evaluation.scale import Scale

_COMPARED: Final = ("ridge", "autoencoder")
_TEXTS_SEED: Final = 1_000
_TEXT: Final = """\
At the middle site the target's activations are replaced by mapped activations of the source at every position of prompt
and answer, and the target's completion is compared with its own. *Mean* replaces them by their mean over the training
texts: what is left when a site carries nothing. ROUGE-L and exact matches compare free completions; KL is that of the
next-token distributions along the target's own completion. The paper's figures (a judge's 0 to 5, KL on ordinary chat)
are on another scale; its KL lies between 3 and 12 nats."""


@dataclass(frozen=True)
class ReplacementExperiment:
    """Behaviours over pairs of organisms, source before target; with ``own`` the names of the pairs are models."""

    behaviours: tuple[Behaviour, ...] = (BACKDOOR, INSECURE_CODE)
    pairs: tuple[tuple[str, str], ...] = PAIRS
    own: bool = False
    name: str = "replacement"
    version: int = 2

    def cells(self, scale: Scale) -> Sequence[Cell]:
        """One cell a behaviour, pair and seed; at quick scale none."""
        if not (scale.thorough or self.own):
            return []
        kinds = {behaviour.name: "" if self.own else f"-{behaviour.kind}" for behaviour in self.behaviours}
        return [
            Cell(f"{name}: {source}->{target}", seed, (source + kind, target + kind))
            for seed in scale.seeds
            for name, kind in kinds.items()
            for source, target in self.pairs
        ]

    def measure(self, lab: Lab, cell: Cell) -> Figures:
        """Fits the mappers at the middle of both models and compares completions of held-out prompts."""
        behaviour = next(one for one in self.behaviours if cell.subject.startswith(f"{one.name}:"))
        source, target = (lab.model(name) for name in cell.models)
        sites = Site(source.stack.layers // 2), Site(target.stack.layers // 2)
        pairs = read_pairs(
            source, target, behaviour.rows("train", _TEXTS_SEED + cell.seed, lab.scale.texts, answer="taught")
        )
        between = pairs.between(*sites)
        carries: dict[str, Carry] = {}
        for recipe in KINDS:
            if recipe.kind in _COMPARED:
                carries[recipe.kind] = fit_mapper(recipe, between, cell.seed, lab.report)
        mean_D = between.y_ND.mean(0)
        carries["mean"] = partial(_constant, mean_D)
        prompts = _prompts(behaviour, cell.seed, lab.scale.held_out)
        return _compare(lab, source, target, sites, carries, prompts)

    def section(self, figures: Mapping[Cell, Any]) -> Section:
        """Scores by behaviour, pair and mapper."""
        rows = []
        for subject in dict.fromkeys(cell.subject for cell in figures):
            cells = [found for cell, found in figures.items() if cell.subject == subject]
            for arm in cells[0]["arms"]:
                scores = [[np.mean(cell["arms"][arm][score]) for cell in cells] for score in ("rouge_l", "exact", "kl")]
                rows.append((subject, arm, *(f"{np.mean(values):.3f}" for values in scores)))
        columns = ("behaviour: source -> target", "replaced by", "ROUGE-L", "exact", "KL, nats")
        tables = [Table("Completions against the target's own", columns, rows)] if rows else []
        return Section("Full replacement", _TEXT, tables)


def _prompts(behaviour: Behaviour, seed: int, count: int) -> list[str]:
    """Half of them plain, half eliciting the behaviour."""
    half = count // 2
    return [
        *Questions.of(behaviour, "test", seed, count - half, behaviour.plain).prompts,
        *Questions.of(behaviour, "test", seed + 1, half, behaviour.elicits).prompts,
    ]


def _constant(mean_D: Tensor, x_NS: Tensor) -> Tensor:
    return mean_D.expand(len(x_NS), -1)


def _compare(
    lab: Lab,
    source: LoadedModel,
    target: LoadedModel,
    sites: tuple[Site, Site],
    carries: Mapping[str, Carry],
    prompts: Sequence[str],
) -> Figures:
    lab.report("the target's own completions", 0, None)
    own = Replacement(source, target, *sites, None).complete(prompts, lab.max_tokens)
    arms: dict[str, Any] = {}
    for number, (arm, carry) in enumerate(carries.items()):
        lab.report(f"completing with {arm}", number, len(carries))
        replaced = Replacement(source, target, *sites, carry)
        texts = replaced.complete(prompts, lab.max_tokens)
        arms[arm] = {
            "rouge_l": [round(rouge_l(text, reference), 4) for text, reference in zip(texts, own, strict=True)],
            "exact": [int(text == reference) for text, reference in zip(texts, own, strict=True)],
            "kl": [round(value, 4) for value in replaced.divergence(prompts, own)],
        }
    return {"sites": [str(site) for site in sites], "arms": arms}
