"""What training minimises, and what is watched beside it.

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional as F


class LossWeights(BaseModel):
    """Weights of the training loss ``kl * KL + mse * MSE``; at least one is above zero."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kl: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    mse: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)

    @model_validator(mode="after")
    def _some_loss(self) -> LossWeights:
        if self.kl == 0 and self.mse == 0:
            raise ValueError("loss needs a weight above zero: set kl or mse")
        return self


def relative_mse(y_ND: Tensor, target_ND: Tensor) -> Tensor:
    """Mean over tokens of ``|y - target|^2 / |target|^2``: 0 is perfect, 1 is as good as answering zero.

    arXiv 2503.04429 trains on the plain mean of squares. Dividing token by token keeps one weight meaningful across
    models, and keeps the first token, whose norm is hundreds of times that of others in large models, from being all
    that counts.
    """
    squares_N = (y_ND.float() - target_ND.float()).square().sum(-1)
    return (squares_N / target_ND.float().square().sum(-1).clamp_min(1e-12)).mean()


def next_token_kl(base_logits_NV: Tensor, logits_NV: Tensor) -> Tensor:
    """Mean over positions of ``KL(base || switched)`` of the next-token distributions, in nats."""
    base_log_NV = F.log_softmax(base_logits_NV.float(), dim=-1)
    return F.kl_div(F.log_softmax(logits_NV.float(), dim=-1), base_log_NV, log_target=True, reduction="batchmean")


def top1_agreement(base_logits_NV: Tensor, logits_NV: Tensor) -> Tensor:
    """Share of positions at which both models would say the same token greedily."""
    return (base_logits_NV.argmax(-1) == logits_NV.argmax(-1)).float().mean()
