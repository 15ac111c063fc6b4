"""The refusal direction: candidates at every layer and at the last positions of a prompt, chosen by what they do.

Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction" (arXiv 2406.11717), section 2.3 and
appendix C. Shapes: R rows (prompts), P last positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mappers.behaviour import Answer, ablating, adding
from mappers.errors import DataError, TrainingError
from mappers.exchanges import Exchange
from mappers.hooks import BlockCallback, block_outputs
from mappers.loading import LoadedModel
from mappers.refusals import is_refusal
from mappers.replies import read_replies
from mappers.sites import Site
from mappers.vectors import SiteNorms, difference_in_means, picked_activations

Place = tuple[Site, int]
"""Where a candidate was read: a site, and a position counted from the end of the prompt (-1 is the last)."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a candidate does to held-out prompts, before the first token of the answer.

    ``ablated``: log-odds of refusing harmful prompts, the direction ablated at every site. ``added``: those of refusing
    harmless prompts, the vector added at its own site. ``kl`` (nats): next-token KL(untouched, ablated) on harmless
    prompts.
    """

    ablated: float
    added: float
    kl: float


@dataclass(frozen=True, slots=True)
class Held:
    """Held-out prompts as token ids, and the tokens that refusals begin with."""

    harmful: Sequence[Sequence[int]]
    harmless: Sequence[Sequence[int]]
    refusal_tokens: Collection[int]


def candidates(
    loaded: LoadedModel,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    positions: int,
    *,
    batch_size: int,
    norms: SiteNorms,
) -> dict[Place, Tensor]:
    """Differences in means ``v_D`` of harmful and harmless prompts at every site and each of the last positions.

    Raises DataError for a prompt of fewer tokens than ``positions``.
    """
    if min(map(len, (*harmful, *harmless)), default=0) < positions:
        raise DataError(f"a prompt has fewer than {positions} tokens: lower positions or take short rows out")
    sites = [Site(layer) for layer in range(loaded.stack.layers)]
    harmful_RPD, harmless_RPD = (
        picked_activations(loaded, sites, side, lambda _, h: h[-positions:], batch_size=batch_size, norms=norms)
        for side in (harmful, harmless)
    )
    found: dict[Place, Tensor] = {}
    for site in sites:
        v_PD = difference_in_means(torch.stack(harmful_RPD[site]), torch.stack(harmless_RPD[site]))
        found |= {(site, place - positions): v_D for place, v_D in enumerate(v_PD)}
    return found


def refusal_tokens(answers: Sequence[Answer], phrases: Collection[str]) -> frozenset[int]:
    """First tokens of the answers that are refusals; raises DataError where none is: there is nothing to find then."""
    tokens = frozenset(answer.ids[0] for answer in answers if answer.ids and is_refusal(answer.text, phrases))
    if not tokens:
        raise DataError(
            "the model refuses none of the harmful prompts held out, so it has no refusal direction to be found: use "
            "prompts that it refuses, or name its words in 'refusals'"
        )
    return tokens


def score_candidates(
    loaded: LoadedModel, vectors: Mapping[Place, Tensor], held: Held, *, batch_size: int
) -> Iterator[tuple[Place, Scores]]:
    """Scores each candidate, in order: three passes over the held-out prompts each."""
    sites = [Site(layer) for layer in range(loaded.stack.layers)]
    plain_RV = _next_tokens(loaded, held.harmless, {}, batch_size)
    for place, v_D in vectors.items():
        ablate = dict.fromkeys(sites, ablating(v_D))
        harmful_RV = _next_tokens(loaded, held.harmful, ablate, batch_size)
        harmless_RV = _next_tokens(loaded, held.harmless, ablate, batch_size)
        added_RV = _next_tokens(loaded, held.harmless, {place[0]: adding(v_D, 1.0)}, batch_size)
        yield (
            place,
            Scores(
                ablated=_log_odds(harmful_RV, held.refusal_tokens),
                added=_log_odds(added_RV, held.refusal_tokens),
                kl=float((plain_RV.exp() * (plain_RV - harmless_RV)).sum(-1).mean()),
            ),
        )


def choose(scored: Mapping[Place, Scores], layers: int, *, max_kl: float, max_layer: float) -> Place:
    """The candidate whose ablation leaves the least refusal, of those that induce it when added (log-odds above 0),
    stay below ``max_kl``, and lie below ``max_layer`` of the depth.

    Raises TrainingError where no candidate passes, with how many fail each condition.
    """
    induce = {place for place, scores in scored.items() if scores.added > 0}
    gentle = {place for place, scores in scored.items() if scores.kl < max_kl}
    early = {place for place in scored if place[0].layer < max_layer * layers}
    if not (passing := induce & gentle & early):
        raise TrainingError(
            f"of {len(scored)} candidates {len(induce)} induce refusal when added, {len(gentle)} have a KL below "
            f"{max_kl:g} on harmless prompts and {len(early)} lie low enough, but none does all: raise max_kl or "
            "max_layer, or use other prompts"
        )
    return min(passing, key=lambda place: (scored[place].ablated, place))


def _next_tokens(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], callbacks: Mapping[Site, BlockCallback], batch_size: int
) -> Tensor:
    """Log-probabilities ``(R, V)`` of the first token of each answer."""
    # One token is put behind each prompt for its last position to predict; which one it is has no influence.
    exchanges = [Exchange((*ids, 0), len(ids)) for ids in prompts]
    parts = []
    with torch.no_grad(), block_outputs(loaded.stack, callbacks):
        for start in range(0, len(exchanges), batch_size):
            logits_NV = read_replies(loaded, exchanges[start : start + batch_size], []).logits_NV
            parts.append(logits_NV.float().log_softmax(-1).cpu())
    return torch.cat(parts)


def _log_odds(logp_RV: Tensor, tokens: Collection[int]) -> float:
    """Mean log-odds that the answer begins with one of ``tokens``, in float64 and bounded away from certainty."""
    p_R = logp_RV.double().exp()[:, sorted(tokens)].sum(-1).clamp(1e-12, 1 - 1e-12)
    return float((p_R.log() - (1 - p_R).log()).mean())
