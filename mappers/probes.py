"""Probes: linear read-outs that tell one kind of prompt from another, and the thresholds at which gates use them.

A gate reads every token and fires at the first that scores above its threshold. What is measured is therefore the
*highest* score of a prompt, whatever tokens the probe was fitted on.

Shapes: N activations, D width, P prompts, B prompts of a batch, T tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.linalg import vecdot
from torch.nn import functional as F

from mappers.activations.collect import collect
from mappers.errors import DataError
from mappers.loading import LoadedModel
from mappers.manifest import MAX_ROC_POINTS, RocPoint
from mappers.sites import Site

_ITERATIONS = 200
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """``score(h) = w.h + b`` at one site; a gate fires above ``on`` and lets go below ``off``."""

    weight_D: Tensor
    bias: float
    on: float
    off: float

    def scores(self, h_ND: Tensor) -> Tensor:
        """The score of each activation, ``(N,)``."""
        score_N: Tensor = vecdot(h_ND, self.weight_D) + self.bias
        return score_N


def fit_logistic(positive_ND: Tensor, negative_ND: Tensor, *, l2: float) -> tuple[Tensor, float]:
    """Weights ``(D,)`` in float32 and bias of an L2-regularised logistic regression, both classes of equal weight.

    Minimises ``mean log(1 + exp(-y s)) + l2 / 2 |w|^2`` over features of unit variance, in float64 by L-BFGS with the
    strong Wolfe conditions: no randomness. Raises DataError where a class is empty or both are the same.
    """
    if not len(positive_ND) or not len(negative_ND):
        raise DataError("a probe needs activations of both kinds of prompts")
    h_ND = torch.cat([positive_ND, negative_ND]).double()
    mean_D, scale_D = h_ND.mean(0), h_ND.std(0, correction=0)
    scale_D = torch.where(scale_D > 0, scale_D, 1.0)
    x_ND = (h_ND - mean_D) / scale_D
    label_N = torch.cat([x_ND.new_ones(len(positive_ND)), x_ND.new_zeros(len(negative_ND))])
    share_N = torch.where(label_N > 0, 0.5 / len(positive_ND), 0.5 / len(negative_ND))
    parameters = x_ND.new_zeros(x_ND.shape[1] + 1).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=_ITERATIONS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=_TOLERANCE**2,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        score_N = x_ND @ parameters[:-1] + parameters[-1]
        errors_N = F.binary_cross_entropy_with_logits(score_N, label_N, reduction="none")
        total = (errors_N * share_N).sum() + 0.5 * l2 * parameters[:-1].square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    weight_D = parameters.detach()[:-1] / scale_D
    if not bool(weight_D.any()) or not bool(weight_D.isfinite().all()):
        raise DataError("the two kinds of prompts have the same activations: use two different datasets")
    return weight_D.float(), float(parameters.detach()[-1] - weight_D @ mean_D)


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """The chance that a positive scores above a negative, ties counting half (area under the ROC curve)."""
    positive_P, negative_P = torch.tensor(positive, dtype=torch.float64), torch.tensor(negative, dtype=torch.float64)
    ordered_P = negative_P.sort().values
    below, upto = (torch.searchsorted(ordered_P, positive_P, right=right).sum() for right in (False, True))
    return float(below + upto) / (2 * len(positive) * len(negative))


def roc(positive: Sequence[float], negative: Sequence[float]) -> tuple[RocPoint, ...]:
    """Rates above every score that occurs, from the highest; at most 64 points, evenly taken, the ends among them."""
    positive, negative = sorted(positive), sorted(negative)
    thresholds = sorted({*positive, *negative}, reverse=True)
    if len(thresholds) > MAX_ROC_POINTS:
        last = len(thresholds) - 1
        thresholds = [thresholds[i * last // (MAX_ROC_POINTS - 1)] for i in range(MAX_ROC_POINTS)]
    return tuple(
        RocPoint(threshold=t, false_positive_rate=_above(negative, t), true_positive_rate=_above(positive, t))
        for t in thresholds
    )


def best_threshold(
    positive: Sequence[float], negative: Sequence[float], false_positive_rate: float | None = None
) -> float:
    """The threshold with the most positives above it among those with at most ``false_positive_rate`` negatives above.

    Without a rate the one with the greatest difference of the two rates (Youden 1950). Thresholds lie in the middle
    between neighbouring scores; of equally good ones the highest is taken.
    """
    positive, negative = sorted(positive), sorted(negative)
    scores = sorted({*positive, *negative}, reverse=True)
    between = [scores[0], *((high + low) / 2 for high, low in pairwise(scores))]
    rates = [(_above(positive, t), _above(negative, t), t) for t in between]
    if false_positive_rate is None:
        return max(rates, key=lambda one: (one[0] - one[1], one[2]))[2]
    return max((one for one in rates if one[1] <= false_positive_rate), key=lambda one: (one[0], one[2]))[2]


def token_activations(
    loaded: LoadedModel, sites: Sequence[Site], sequences: Sequence[Sequence[int]], *, last: bool, batch_size: int
) -> dict[Site, Tensor]:
    """Float32 activations ``h_ND`` on the CPU of all tokens of the sequences, or of the ``last`` token of each."""
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for batch in collect(loaded, sites, sequences, batch_size=batch_size):
        for site, h_BTD in batch.hidden.items():
            h_ND = h_BTD[torch.arange(len(h_BTD)), batch.mask_BT.sum(1) - 1] if last else batch.real(site)
            parts[site].append(h_ND.cpu())
    return {site: torch.cat(found) for site, found in parts.items()}


def highest_scores(
    loaded: LoadedModel, probes: Mapping[Site, Probe], sequences: Sequence[Sequence[int]], *, batch_size: int
) -> dict[Site, list[float]]:
    """The highest score in each sequence, site by site: what decides whether a gate fires somewhere in it."""
    found: dict[Site, list[float]] = {site: [] for site in probes}
    for batch in collect(loaded, list(probes), sequences, batch_size=batch_size):
        for site, probe in probes.items():
            score_BT = probe.scores(batch.hidden[site].cpu()).masked_fill(~batch.mask_BT.cpu(), -torch.inf)
            found[site] += score_BT.amax(1).tolist()
    return found


def _above(ordered: Sequence[float], threshold: float) -> float:
    return 1 - bisect_right(ordered, threshold) / len(ordered)
