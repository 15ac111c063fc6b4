"""Picking among steering vectors by behaviour on validation prompts, all candidates in shared batches.

Shapes: D width of the target's residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mappers.hooks import BlockCallback
from mappers.sites import Site
from mappers.vectors import random_vector
from server.evaluation.answering import Answerer, Asked, Done, steered
from server.evaluation.verdicts import share
from server.interventions.catalog import ResolvedIntervention
from server.interventions.operations import steer, unit
from server.types import Operation

Judge = Callable[[Sequence[str]], str]
"""One answer to each of the prompts that were asked -> verdicts, "1" where it is what is wanted."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A direction ``v_D`` found at ``site``, which acts at ``sites`` (none given: there)."""

    site: Site
    v_D: Tensor
    sites: tuple[Site, ...] = ()

    def steering(self, strength: float, operation: Operation) -> ResolvedIntervention:
        """The direction as an intervention of a request."""
        return steered(self.v_D, self.sites or (self.site,), strength, operation)

    def callbacks(self, strength: float, operation: Operation) -> dict[Site, BlockCallback]:
        """The same at every position, as hooks for a plain forward."""

        def change(h_BTD: Tensor) -> Tensor:
            tokens_KD = h_BTD.float().flatten(0, -2)
            strength_K = torch.full((len(tokens_KD),), strength, device=tokens_KD.device)
            v_KD = (self.v_D if operation == "add" else unit(self.v_D)).expand_as(tokens_KD)
            return steer(operation, tokens_KD, v_KD, strength_K).view_as(h_BTD).to(h_BTD)

        return dict.fromkeys(self.sites or (self.site,), change)


@dataclass(frozen=True, slots=True)
class Picked:
    """The candidate and strength that did best on validation prompts, and the share of them that came out right."""

    candidate: Candidate
    strength: float
    score: float


@dataclass(frozen=True, slots=True)
class Trial:
    """Prompts to try candidates on, how their answers are judged, and how long they may be.

    With ``inside`` a strength counts for no more than the next smaller one does, and the smallest for nothing: what is
    picked lies a step above the edge, where few validation prompts cannot tell on which side another prompt falls.
    """

    prompts: Sequence[str]
    judge: Judge
    max_tokens: int
    operation: Operation = "add"
    inside: bool = False

    def asked(self, candidate: Candidate, strength: float) -> list[Asked]:
        """Every prompt, steered."""
        intervention = candidate.steering(strength, self.operation)
        return [Asked(prompt, (intervention,)) for prompt in self.prompts]


def pick(
    answerer: Answerer,
    candidates: Mapping[str, Sequence[Candidate]],
    strengths: Sequence[float],
    trial: Trial,
    done: Done | None = None,
) -> dict[str, Picked]:
    """For each label the best of its candidates and strengths; of equals the smallest strength, then the first."""
    ordered = sorted(strengths, key=abs)
    plan = [(label, c, s) for label, those in candidates.items() for c in those for s in ordered]
    asked = [one for _, candidate, strength in plan for one in trial.asked(candidate, strength)]
    texts = answerer.answers(asked, max_tokens=trial.max_tokens, done=done)
    count = len(trial.prompts)
    best: dict[str, Picked] = {}
    scores = [share(trial.judge(texts[place * count : (place + 1) * count])) for place in range(len(plan))]
    if trial.inside:
        scores = [min(score, scores[place - 1]) if place % len(ordered) else 0.0 for place, score in enumerate(scores)]
    for (label, candidate, strength), score in zip(plan, scores, strict=True):
        found = best.get(label)
        if found is None or (score, -abs(strength)) > (found.score, -abs(found.strength)):
            best[label] = Picked(candidate, strength, score)
    return best


def random_candidate(candidate: Candidate, seed: int) -> Candidate:
    """A random direction of the candidate's norm that acts where it does."""
    v_D = candidate.v_D
    return replace(candidate, v_D=random_vector(len(v_D), float(v_D.norm()), seed).to(v_D))


def random_controls(prompts: Sequence[str], picked: Picked, seed: int, operation: Operation = "add") -> list[Asked]:
    """Each prompt under another random direction of the picked vector's norm, sites and strength.

    One direction can be lucky; the control is a mean over as many as there are prompts.
    """
    candidates = (random_candidate(picked.candidate, seed + place) for place in range(len(prompts)))
    return [
        Asked(prompt, (candidate.steering(picked.strength, operation),))
        for prompt, candidate in zip(prompts, candidates, strict=True)
    ]
