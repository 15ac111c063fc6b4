"""Draws the next token of every row; each row's draw depends on that row alone.

Shapes: B rows, S rows that sample, V vocabulary. Logits are float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.row import Row
from server.types import TokenLogprob


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Sampling settings of a batch as tensors; None means that nobody asked."""

    rows: tuple[Row, ...]
    sampled_S: Tensor | None
    temperature_S1: Tensor | None
    top_k_S1: Tensor | None
    top_p_S1: Tensor | None
    min_p_S1: Tensor | None
    adjusted: tuple[int, ...]

    @classmethod
    def build(cls, rows: Sequence[Row], vocab: int, device: torch.device) -> SamplingPlan:
        """Compiles the settings of ``rows``; reusable as long as the same rows are in the same order."""
        settings = [row.request.sampling for row in rows]
        sampled = [i for i, s in enumerate(settings) if s.temperature > 0]
        asked = [settings[i] for i in sampled]

        def column(values: list[float], neutral: float) -> Tensor | None:
            if all(value == neutral for value in values):
                return None
            return torch.tensor(values, device=device)[:, None]

        return cls(
            rows=tuple(rows),
            sampled_S=torch.tensor(sampled, device=device) if sampled else None,
            temperature_S1=column([s.temperature for s in asked], 1.0),
            top_k_S1=column([float(s.top_k or vocab) for s in asked], float(vocab)),
            top_p_S1=column([s.top_p for s in asked], 1.0),
            min_p_S1=column([s.min_p for s in asked], 0.0),
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
        logprobs = logits_BV[wanted].log_softmax(-1)
        for place, i in enumerate(wanted):
            found[i] = token_logprob(logprobs[place], tokens[i], rows[i].request.sampling.logprobs or 0)
    return found


def token_logprob(logprobs_V: Tensor, token: int, top: int) -> TokenLogprob:
    """The log-probability of ``token`` and the ``top`` best alternatives, best first."""
    best: tuple[tuple[int, float], ...] = ()
    if top:
        values, ids = logprobs_V.topk(min(top, len(logprobs_V)))
        best = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs_V[token]), best)


def _is_adjusted(row: Row) -> bool:
    s = row.request.sampling
    return bool(s.logit_bias) or s.repetition_penalty != 1.0 or s.presence_penalty != 0 or s.frequency_penalty != 0


def _adjust(logits_V: Tensor, row: Row) -> None:
    """In place: repetition penalty over prompt and text (Keskar et al. 2019), OpenAI's two penalties over the text."""
    s = row.request.sampling
    if s.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(row.tokens)), device=logits_V.device)
        scores = logits_V[seen]
        logits_V[seen] = torch.where(scores > 0, scores / s.repetition_penalty, scores * s.repetition_penalty)
    if (s.presence_penalty or s.frequency_penalty) and row.generated:
        seen_counts = Counter(row.tokens[row.prompt_len :])
        ids = torch.tensor(list(seen_counts), device=logits_V.device)
        counts = torch.tensor(list(seen_counts.values()), device=logits_V.device)
        logits_V[ids] -= s.presence_penalty + s.frequency_penalty * counts
    if s.logit_bias:
        ids = torch.tensor(list(s.logit_bias), device=logits_V.device)
        logits_V[ids] += torch.tensor(list(s.logit_bias.values()), device=logits_V.device)


def _sample(logits_SV: Tensor, plan: SamplingPlan) -> Tensor:
    assert plan.sampled_S is not None
    if plan.temperature_S1 is not None:
        logits_SV = logits_SV / plan.temperature_S1
    sorted_SV, ids_SV = logits_SV.sort(dim=-1, descending=True)
    if plan.top_k_S1 is not None:
        rank_V = torch.arange(sorted_SV.shape[-1], device=sorted_SV.device)
        sorted_SV = sorted_SV.masked_fill(rank_V >= plan.top_k_S1, -torch.inf)
    p_SV = sorted_SV.softmax(-1)
    if plan.min_p_S1 is not None:
        p_SV = p_SV.masked_fill(p_SV < plan.min_p_S1 * p_SV[:, :1], 0.0)
    if plan.top_p_S1 is not None:
        total_S1 = p_SV.sum(-1, keepdim=True)
        before_SV = p_SV.cumsum(-1) - p_SV
        keep_SV = before_SV < plan.top_p_S1 * total_S1
        keep_SV[:, 0] = True
        p_SV = p_SV.masked_fill(~keep_SV, 0.0)
    cumulative_SV = p_SV.double().cumsum(-1)
    rows = [plan.rows[i] for i in plan.sampled_S.tolist()]
    uniform = [row.rng.random() for row in rows]
    threshold_S1 = torch.tensor(uniform, device=p_SV.device, dtype=torch.float64)[:, None] * cumulative_SV[:, -1:]
    place_S1 = (cumulative_SV <= threshold_S1).sum(-1, keepdim=True).clamp_max(p_SV.shape[-1] - 1)
    return ids_SV.gather(-1, place_S1).squeeze(-1)
