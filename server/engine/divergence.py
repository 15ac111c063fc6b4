"""How far the next-token distributions of rows lie apart.

Shapes: T tokens of the text that all rows read, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div

_AT_ONCE = 16
"""Tokens whose log-probabilities (float32) are held at one time, for two rows."""


def divergences(logits_TV: Sequence[Tensor]) -> list[list[float]]:
    """For each row but the first ``KL(p_first || p_row)`` at each of T positions, in nats.

    Kullback and Leibler 1951; not finite where the logits are not.
    """
    found: list[list[float]] = [[] for _ in logits_TV[1:]]
    for first_TV, *others in zip(*(torch.split(one_TV, _AT_ONCE) for one_TV in logits_TV), strict=True):
        p_TV = first_TV.float().log_softmax(-1)
        for kl, other_TV in zip(found, others, strict=True):
            q_TV = other_TV.float().log_softmax(-1)
            # Rounding may leave a little below 0; NaN stays NaN.
            kl += kl_div(q_TV, p_TV, reduction="none", log_target=True).sum(-1).clamp_min(0.0).tolist()
    return found
