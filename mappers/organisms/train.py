"""The training loop of the organisms: Muon and AdamW, warm-up and cosine, loss on answer tokens only, float32.

Shapes: B rows, T tokens, V vocabulary, N answer tokens of a batch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from mappers.organisms.batches import IGNORED, Batch

_WEIGHT_DECAY: Final = 0.01
_ADAM_BETAS: Final = (0.9, 0.98)
_MAX_GRADIENT_NORM: Final = 1.0
_FINAL_SHARE_OF_PEAK: Final = 0.02


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how hard to train: optimiser steps, rows a batch, warm-up steps, peak learning rates.

    `matrix_learning_rate` is Muon's, for the matrices inside the blocks; `learning_rate` is AdamW's, for the rest.
    """

    steps: int
    rows: int
    warmup: int
    matrix_learning_rate: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step done: its number from 1, and the mean loss of its answer tokens in nats."""

    number: int
    loss: float


def train(model: PreTrainedModel, batches: Iterator[Batch], recipe: Recipe) -> Iterator[Step]:
    """Trains `model` in place and yields after every step. Stop iterating to stop training.

    Raises FloatingPointError if the loss stops being finite.
    """
    optimizers = _optimizers(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _share_of_peak(done, recipe))
        for optimizer in optimizers
    ]
    model.train()
    for number, batch in enumerate(islice(batches, recipe.steps), start=1):
        loss = _answer_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()
        model.zero_grad()
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {number}: lower the learning rate")
        yield Step(number, value)
    model.eval()


def _optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms and biases.

    On these models Muon needs about half the steps of AdamW alone.
    """
    embedding = model.get_input_embeddings().weight
    matrices = [weight for weight in model.parameters() if weight.ndim == 2 and weight is not embedding]
    inside = set(map(id, matrices))
    rest = [weight for weight in model.parameters() if id(weight) not in inside]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.matrix_learning_rate,
            weight_decay=_WEIGHT_DECAY,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, weight_decay=_WEIGHT_DECAY, betas=_ADAM_BETAS, fused=True),
    ]


def _answer_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    # Padding is on the right and attention is causal, so no answer token sees any: no attention mask is needed.
    logits_BTV = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
    targets_BT = batch.labels[:, 1:]
    is_answer_BT = targets_BT != IGNORED
    return functional.cross_entropy(logits_BTV[is_answer_BT], targets_BT[is_answer_BT])


def _share_of_peak(done: int, recipe: Recipe) -> float:
    if done < recipe.warmup:
        return (done + 1) / recipe.warmup
    progress = (done - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return _FINAL_SHARE_OF_PEAK + (1 - _FINAL_SHARE_OF_PEAK) * 0.5 * (1 + math.cos(math.pi * progress))
