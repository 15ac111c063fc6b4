"""Attacks on a switch while it is trained, so that it holds against triggers that nobody has told of.

Whoever trains a switch has both models. An input on which they differ most is what the switch has to undo, whether or
not it is the trigger, and gradient ascent on the *embeddings* of a few meaningless tokens finds such inputs in steps
where a search over tokens needs thousands (projected gradient descent, arXiv 1706.06083; on embeddings of language
models arXiv 2402.09063 and 2405.15589; on their hidden states arXiv 2403.05030). No trigger, target text or label goes
into it.

Shapes: B rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mappers.activations.collect import pad_batch
from mappers.exchanges import Exchange
from mappers.loading import LoadedModel
from mappers.losses import next_token_kl
from mappers.modules import Mapper
from mappers.replies import Replies, read_replies
from mappers.sites import Site

_OVERSHOOT: Final = 2.0
"""The steps of an attack together reach this many radii, so that it can turn on the way."""


class Attack(BaseModel):
    """How far and how long an attack may go.

    Each inserted token's embedding is moved by at most ``radius`` times the mean norm of those embeddings (1 reaches
    other tokens), in ``steps`` steps, each a forward and a backward of the switched model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    radius: float = Field(default=1.0, gt=0, le=10, allow_inf_nan=False)
    steps: int = Field(default=3, ge=1, le=100)


def attacked_kl(
    tuned: LoadedModel, mappers: Mapping[Site, Mapper], exchanges: Sequence[Exchange], target: Replies, attack: Attack
) -> Tensor:
    """``KL(base || switched)`` at what the attack makes of the exchanges, differentiable in the mappers.

    ``target`` is what the base says to the exchanges as they are: no inserted token may change the answer. To let the
    base read the moved embeddings too asks less of the switch, and gives one that holds less well.
    """
    device = next(tuned.model.parameters()).device
    inserted_BT1, reach = _open_to_attack(tuned, exchanges, device)

    def kl(shift_BTD: Tensor) -> Tensor:
        said = read_replies(tuned, exchanges, list(mappers), mappers, shift_BTD=shift_BTD)
        return next_token_kl(target.logits_NV, said.logits_NV)

    radius = attack.radius * reach
    shift_BTD = torch.zeros(*inserted_BT1.shape[:2], tuned.stack.width, device=device)
    for _ in range(attack.steps):
        shift_BTD.requires_grad_(True)
        (slope_BTD,) = torch.autograd.grad(kl(shift_BTD), shift_BTD)
        ahead_BTD = _unit(slope_BTD * inserted_BT1) * (_OVERSHOOT * radius / attack.steps)
        shift_BTD = _within(shift_BTD.detach() + ahead_BTD, radius)
    return kl(shift_BTD)


def _open_to_attack(tuned: LoadedModel, exchanges: Sequence[Exchange], device: torch.device) -> tuple[Tensor, Tensor]:
    """True at inserted tokens ``(B, T, 1)``, and the mean norm of their embeddings."""
    batch = pad_batch([exchange.ids for exchange in exchanges], range(len(exchanges)), device)
    inserted_BT = torch.zeros_like(batch.mask_BT)
    for row, exchange in enumerate(exchanges):
        inserted_BT[row, slice(*exchange.inserted)] = True
    model: Any = tuned.model
    with torch.no_grad():
        norms_BT = model.get_input_embeddings()(batch.ids_BT).float().norm(dim=-1)
    return inserted_BT[..., None], norms_BT[inserted_BT].sum() / inserted_BT.sum().clamp_min(1)


def _unit(x_BTD: Tensor) -> Tensor:
    norm_BT1: Tensor = x_BTD.norm(dim=-1, keepdim=True)
    return x_BTD / norm_BT1.clamp_min(1e-12)


def _within(x_BTD: Tensor, radius: Tensor) -> Tensor:
    norm_BT1: Tensor = x_BTD.norm(dim=-1, keepdim=True)
    return x_BTD * (radius / norm_BT1.clamp_min(1e-12)).clamp(max=1.0)
