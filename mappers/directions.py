"""Methods that make a direction of the activations of two sides, beside the difference in means.

All give vectors of one scale: added at strength 1, a mean negative activation becomes a mean positive one as far as the
direction tells them apart. Shapes: R rows (prompts), D width, K rank of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mappers.errors import DataError, TrainingError
from mappers.vectors import difference_in_means

_MAX_STEPS = 100
_GRADIENT = 1e-9
_RANK = 1e-10
_ROUNDING = 1e-12
_SMALLEST_STEP = 1e-6


def principal_direction(positive_RD: Tensor, negative_RD: Tensor) -> Tensor:
    """First principal component of the paired differences ``h+_i - h-_i``, positives higher (Zou et al. 2023).

    The differences are not centred: taken in both directions, as there, their mean is zero. Raises DataError for sides
    of different length, and where positives do not project higher on average.
    """
    if len(positive_RD) != len(negative_RD):
        raise DataError(
            f"pairs need as many positive prompts as negative ones, got {len(positive_RD)} and {len(negative_RD)}"
        )
    differences = (positive_RD - negative_RD).double()
    return _along(torch.linalg.svd(differences, full_matrices=False).Vh[0], positive_RD, negative_RD)


def logistic_direction(positive_RD: Tensor, negative_RD: Tensor, *, l2: float) -> Tensor:
    """The weight of a logistic probe that tells the two sides apart; both sides weigh the same.

    Minimises the mean log-loss plus ``l2 / 2 |w|^2``, with activations centred and scaled to unit mean square norm so
    that ``l2`` means the same at every site. Newton's method in float64 over the rows' span, in which the optimum lies:
    deterministic. Raises DataError where all rows are the same, TrainingError where it does not converge.
    """
    x_RD = torch.cat([positive_RD, negative_RD]).double()
    x_RD = x_RD - x_RD.mean(0)
    scale = float(x_RD.square().sum(1).mean().sqrt())
    if scale == 0.0:
        raise DataError("positive and negative prompts all have the same activation: use two different sets")
    left_RK, values_K, right_KD = torch.linalg.svd(x_RD / scale, full_matrices=False)
    kept = values_K > _RANK * values_K[0]
    z_RK, right_KD = left_RK[:, kept] * values_K[kept], right_KD[kept]
    label_R = torch.cat([torch.ones(len(positive_RD)), torch.zeros(len(negative_RD))]).to(z_RK)
    weight_R = label_R * (0.5 / len(positive_RD)) + (1 - label_R) * (0.5 / len(negative_RD))
    return _along(_newton(z_RK, label_R, weight_R, l2) @ right_KD, positive_RD, negative_RD)


def differing_tokens(positive: Sequence[int], negative: Sequence[int]) -> tuple[range, range]:
    """The matched positions of a contrastive pair: where the two token sequences differ.

    Common start and end are passed over; what is left is matched from its end, as far as the shorter one goes (ActAdd,
    Turner et al. 2023, pads instead). Raises DataError where nothing is left of one of them.
    """
    shorter = min(len(positive), len(negative))
    start = next((i for i in range(shorter) if positive[i] != negative[i]), shorter)
    end = next((i for i in range(shorter - start) if positive[-1 - i] != negative[-1 - i]), shorter - start)
    count = shorter - start - end
    if count <= 0:
        raise DataError(
            "actadd compares tokens in which the two prompts of a pair differ, and one of them has none: put a neutral "
            "text in the trigger's place (trigger with 'replaces')"
        )
    return tuple(range(len(ids) - end - count, len(ids) - end) for ids in (positive, negative))  # type: ignore[return-value]


def _along(direction_D: Tensor, positive_RD: Tensor, negative_RD: Tensor) -> Tensor:
    """The part of the difference in means along a direction, whose sign it thereby fixes."""
    unit_D = F.normalize(direction_D, dim=0)
    step = float(difference_in_means(positive_RD, negative_RD).double() @ unit_D)
    if step == 0.0:
        raise DataError("positive and negative prompts project alike on the direction that was found: no sign fits it")
    return (step * unit_D).float()


def _newton(z_RK: Tensor, label_R: Tensor, weight_R: Tensor, l2: float) -> Tensor:
    """Weights ``w_K`` of the regularised logistic fit with an intercept that is not penalised."""
    z_RK = torch.cat([z_RK, torch.ones(len(z_RK), 1, dtype=z_RK.dtype)], dim=1)
    penalty_K = torch.full((z_RK.shape[1],), l2, dtype=z_RK.dtype)
    penalty_K[-1] = 0.0

    def loss(w_K: Tensor) -> Tensor:
        losses_R = F.binary_cross_entropy_with_logits(z_RK @ w_K, label_R, reduction="none")
        return weight_R @ losses_R + (penalty_K * w_K.square()).sum() / 2

    w_K = torch.zeros(z_RK.shape[1], dtype=z_RK.dtype)
    for _ in range(_MAX_STEPS):
        p_R = torch.sigmoid(z_RK @ w_K)
        gradient_K = z_RK.T @ (weight_R * (p_R - label_R)) + penalty_K * w_K
        if float(gradient_K.norm()) < _GRADIENT:
            return w_K[:-1]
        hessian_KK = (z_RK.T * (weight_R * p_R * (1 - p_R))) @ z_RK + torch.diag(penalty_K)
        step_K = torch.linalg.solve(hessian_KK, gradient_K)
        bound, size = float(loss(w_K)) * (1 + _ROUNDING), 1.0
        while float(loss(w_K - size * step_K)) > bound and size > _SMALLEST_STEP:
            size /= 2
        w_K = w_K - size * step_K
    raise TrainingError("the logistic probe does not converge: raise l2")
