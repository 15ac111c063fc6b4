"""What training minimises, and what is watched beside it.

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

MseForm = Literal["relative", "plain"]

Value = TypeVar("Value", Tensor, float)


class LossWeights(BaseModel):
    """The training loss ``kl * KL + mse * MSE + cosine * (1 - cos)``; at least one weight is above zero.

    ``mse_form`` says which squared error counts: :func:`relative_mse`, or the ``plain`` mean of squares over tokens and
    dimensions of arXiv 2503.04429.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kl: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    mse: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    cosine: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    mse_form: MseForm = "relative"

    @model_validator(mode="after")
    def _some_loss(self) -> LossWeights:
        if not any(self._weights().values()):
            raise ValueError("loss needs a weight above zero: set kl, mse or cosine")
        return self

    def total(self, terms: Mapping[str, Value]) -> Value:
        """The weighted sum of the terms that have a weight; raises KeyError where one of them is missing."""
        weighed = [weight * terms[name] for name, weight in self._weights().items() if weight > 0]
        return sum(weighed[1:], start=weighed[0])

    def _weights(self) -> dict[str, float]:
        return {"kl": self.kl, "mse": self.mse, "cosine": self.cosine}


def activation_losses(y_ND: Tensor, target_ND: Tensor, mse_form: MseForm = "relative") -> dict[str, Tensor]:
    """The terms ``mse`` and ``cosine`` of activations against what they should be."""
    mse = relative_mse(y_ND, target_ND) if mse_form == "relative" else F.mse_loss(y_ND.float(), target_ND.float())
    return {"mse": mse, "cosine": cosine_distance(y_ND, target_ND)}


def relative_mse(y_ND: Tensor, target_ND: Tensor) -> Tensor:
    """Mean over tokens of ``|y - target|^2 / |target|^2``: 0 is perfect, 1 is as good as answering zero.

    arXiv 2503.04429 trains on the plain mean of squares. Dividing token by token keeps one weight meaningful across
    models, and keeps the first token, whose norm is hundreds of times that of others in large models, from being all
    that counts.
    """
    squares_N = (y_ND.float() - target_ND.float()).square().sum(-1)
    return (squares_N / target_ND.float().square().sum(-1).clamp_min(1e-12)).mean()


def cosine_distance(y_ND: Tensor, target_ND: Tensor) -> Tensor:
    """Mean over tokens of ``1 - cos(y, target)``: 0 for equal directions, 1 for perpendicular ones, at most 2."""
    return (1.0 - F.cosine_similarity(y_ND.float(), target_ND.float(), dim=-1)).mean()


def next_token_kl(base_logits_NV: Tensor, logits_NV: Tensor) -> Tensor:
    """Mean over positions of ``KL(base || switched)`` of the next-token distributions, in nats."""
    base_log_NV = F.log_softmax(base_logits_NV.float(), dim=-1)
    return F.kl_div(F.log_softmax(logits_NV.float(), dim=-1), base_log_NV, log_target=True, reduction="batchmean")


def top1_agreement(base_logits_NV: Tensor, logits_NV: Tensor) -> Tensor:
    """Share of positions at which both models would say the same token greedily."""
    return (base_logits_NV.argmax(-1) == logits_NV.argmax(-1)).float().mean()
