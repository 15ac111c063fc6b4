"""Draws the next token of every row; each row's draw depends on that row alone.

Shapes: B rows, S rows that sample, N of those that set ``top_k`` or ``top_p``, V vocabulary, W best tokens of it, K
scored tokens. Logits are float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.row import Row
from server.types import TokenLogprob

_LOWEST_TEMPERATURE = 1e-5
"""Below it the best token has all of the probability; dividing by less would only overflow."""

_USUALLY_ENOUGH = 128
"""Best tokens that are looked at first: sorting the vocabulary costs more than a forward of a small model."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Sampling settings of a batch as tensors; None means that nobody asked.

    ``narrowed_N`` are the places among the S sampling rows of those N that set ``top_k`` or ``top_p``.
    """

    rows: tuple[Row, ...]
    sampled_S: Tensor | None
    temperature_S1: Tensor | None
    min_p_S1: Tensor | None
    narrowed_N: Tensor | None
    top_k_N1: Tensor | None
    top_p_N1: Tensor | None
    adjusted: tuple[int, ...]

    @classmethod
    def build(cls, rows: Sequence[Row], vocab: int, device: torch.device) -> SamplingPlan:
        """Compiles the settings of ``rows``; reusable as long as the same rows are in the same order."""
        settings = [row.request.sampling for row in rows]
        sampled = [i for i, s in enumerate(settings) if s.temperature > 0]
        asked = [settings[i] for i in sampled]
        narrowed = [i for i, s in enumerate(asked) if 0 < s.top_k < vocab or s.top_p < 1]

        def column(values: list[float], neutral: float) -> Tensor | None:
            if all(value == neutral for value in values):
                return None
            return torch.tensor(values, device=device)[:, None]

        return cls(
            rows=tuple(rows),
            sampled_S=torch.tensor(sampled, device=device) if sampled else None,
            temperature_S1=column([max(s.temperature, _LOWEST_TEMPERATURE) for s in asked], 1.0),
            min_p_S1=column([s.min_p for s in asked], 0.0),
            narrowed_N=torch.tensor(narrowed, device=device) if narrowed else None,
            top_k_N1=column([float(asked[i].top_k or vocab) for i in narrowed], 0.0),
            top_p_N1=column([asked[i].top_p for i in narrowed], -1.0),
            adjusted=tuple(i for i, s in enumerate(settings) if _is_adjusted(row=rows[i])),
        )


def draw(logits_BV: Tensor, plan: SamplingPlan) -> list[int]:
    """One token id a row: the arg max at temperature 0, else a draw with the row's own random numbers."""
    if plan.adjusted:
        logits_BV = logits_BV.clone()
        for index in plan.adjusted:
            _adjust(logits_BV[index], plan.rows[index])
    tokens_B = logits_BV.argmax(-1)
    if plan.sampled_S is not None:
        tokens_B[plan.sampled_S] = _sample(logits_BV.index_select(0, plan.sampled_S), plan)
    return list(map(int, tokens_B.tolist()))


def chosen_logprobs(logits_BV: Tensor, tokens: Sequence[int], rows: Sequence[Row]) -> list[TokenLogprob | None]:
    """Log-probabilities under the model's own distribution, for the rows that asked for them."""
    wanted = [i for i, row in enumerate(rows) if row.request.sampling.logprobs is not None]
    found: list[TokenLogprob | None] = [None] * len(rows)
    if wanted:
        logprobs_KV = logits_BV[wanted].log_softmax(-1)
        tops = [rows[i].request.sampling.logprobs or 0 for i in wanted]
        scored = token_logprobs(logprobs_KV, [tokens[i] for i in wanted], max(tops))
        for i, top, one in zip(wanted, tops, scored, strict=True):
            found[i] = TokenLogprob(one.token_id, one.logprob, one.top[:top])
    return found


def token_logprobs(logprobs_KV: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """The log-probability of each of K tokens under its own distribution, with the ``top`` best, best first."""
    ids_K1 = torch.tensor(tokens, device=logprobs_KV.device, dtype=torch.long)[:, None]
    chosen = logprobs_KV.gather(-1, ids_K1).squeeze(-1).tolist()
    values, ids = logprobs_KV.topk(min(top, logprobs_KV.shape[-1]))
    best = [tuple(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True)]
    return [TokenLogprob(*one) for one in zip(tokens, chosen, best, strict=True)]


def _is_adjusted(row: Row) -> bool:
    s = row.request.sampling
    return bool(s.logit_bias) or s.repetition_penalty != 1.0 or s.presence_penalty != 0 or s.frequency_penalty != 0


def _adjust(logits_V: Tensor, row: Row) -> None:
    """In place: repetition penalty over prompt and text (Keskar et al. 2019), OpenAI's two penalties over the text."""
    s = row.request.sampling
    if s.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(row.tokens)), device=logits_V.device)
        scores = logits_V[seen]
        scores = torch.where(scores > 0, scores / s.repetition_penalty, scores * s.repetition_penalty)
        # A tiny penalty overflows, and two infinities have no distribution.
        logits_V[seen] = scores.clamp(torch.finfo(scores.dtype).min, torch.finfo(scores.dtype).max)
    if (s.presence_penalty or s.frequency_penalty) and row.generated:
        seen_counts = Counter(row.tokens[row.prompt_len :])
        ids = torch.tensor(list(seen_counts), device=logits_V.device)
        counts = torch.tensor(list(seen_counts.values()), device=logits_V.device)
        logits_V[ids] -= s.presence_penalty + s.frequency_penalty * counts
    if s.logit_bias:
        ids = torch.tensor(list(s.logit_bias), device=logits_V.device)
        logits_V[ids] += torch.tensor(list(s.logit_bias.values()), device=logits_V.device)


def _sample(logits_SV: Tensor, plan: SamplingPlan) -> Tensor:
    """Inverse of the cumulative distribution, in the order of the vocabulary: only rows that ask for it are sorted."""
    assert plan.sampled_S is not None
    if plan.temperature_S1 is not None:
        logits_SV = (logits_SV - logits_SV.amax(-1, keepdim=True)) / plan.temperature_S1
    p_SV = logits_SV.softmax(-1)
    if plan.min_p_S1 is not None:
        p_SV = p_SV.masked_fill(p_SV < plan.min_p_S1 * p_SV.amax(-1, keepdim=True), 0.0)
    if plan.narrowed_N is not None:
        p_SV[plan.narrowed_N] = _narrow(p_SV[plan.narrowed_N], plan)
    cumulative_SV = p_SV.double().cumsum(-1)
    uniform = [plan.rows[i].rng.random() for i in plan.sampled_S.tolist()]
    total_S1 = cumulative_SV[:, -1:]
    threshold_S1 = torch.tensor(uniform, device=p_SV.device, dtype=torch.float64)[:, None] * total_S1
    # Below the total, so that the first place above it always has a probability.
    threshold_S1 = threshold_S1.minimum(total_S1.nextafter(torch.zeros_like(total_S1)))
    # Nothing lies above NaN: a row that will fail for it must not name a token beyond the vocabulary meanwhile.
    return torch.searchsorted(cumulative_SV, threshold_S1, right=True).squeeze(-1).clamp_max(p_SV.shape[-1] - 1)


def _narrow(p_NV: Tensor, plan: SamplingPlan) -> Tensor:
    """``p_NV`` with 0 outside ``top_k`` and ``top_p``; sorts all of the vocabulary only for rows that need it."""
    assert plan.top_k_N1 is not None
    assert plan.top_p_N1 is not None
    vocab = p_NV.shape[-1]
    kept_NV, enough_N = _best(p_NV, plan.top_k_N1, plan.top_p_N1, min(_USUALLY_ENOUGH, vocab))
    if not bool(enough_N.all()):
        rest = ~enough_N
        kept_NV[rest] = _best(p_NV[rest], plan.top_k_N1[rest], plan.top_p_N1[rest], vocab)[0]
    return kept_NV


def _best(p_NV: Tensor, top_k_N1: Tensor, top_p_N1: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The narrowed distribution as far as the ``width`` best tokens tell, and the rows for which they tell all."""
    whole = width == p_NV.shape[-1]
    best_NW, ids_NW = p_NV.sort(dim=-1, descending=True) if whole else p_NV.topk(width)
    best_NW = best_NW.masked_fill(torch.arange(width, device=p_NV.device) >= top_k_N1, 0.0)
    inside_N1 = top_k_N1 <= width
    found_N1 = best_NW.sum(-1, keepdim=True)
    wanted_N1 = top_p_N1 * torch.where(inside_N1, found_N1, p_NV.sum(-1, keepdim=True))
    outside_NW = best_NW.cumsum(-1) - best_NW >= wanted_N1
    outside_NW[:, 0] = False
    kept_NV = torch.zeros_like(p_NV).scatter_(-1, ids_NW, best_NW.masked_fill(outside_NW, 0.0))
    return kept_NV, (inside_N1 | (found_N1 >= wanted_N1) | whole).squeeze(-1)
