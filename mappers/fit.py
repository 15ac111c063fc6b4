"""One gradient fit in progress: mappers, optimiser and step, with a state that can be saved and taken up exactly.

Nothing in it draws at random after the start, and which rows a step sees follows from seed and step alone
(:mod:`mappers.batch_order`), so a fit that is interrupted and restored ends in the same tensors as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil, cos, inf, isfinite, pi
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mappers.batch_order import BatchOrder
from mappers.errors import TrainingError
from mappers.losses import LossWeights
from mappers.modules import Mapper, MapperConfig, build_mapper
from mappers.sites import Site

_BEST = "best."


class TrainingConfig(BaseModel):
    """How mappers are trained: AdamW, clipped gradients, a constant or cosine learning rate.

    One of ``steps`` optimiser steps is taken down the mean loss of ``accumulate`` batches of ``batch_size`` rows.
    ``patience`` is the number of validations in a row without a better loss that end a fit; it then ends with the
    mappers of its best validation. ``mixed_precision`` runs the forwards of training in bfloat16 where torch's autocast
    holds that to be safe.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: LossWeights
    steps: int = Field(ge=1, le=1_000_000)
    batch_size: int = Field(default=16, ge=1, le=65_536)
    accumulate: int = Field(default=1, ge=1, le=1024)
    learning_rate: float = Field(default=1e-3, gt=0, le=10, allow_inf_nan=False)
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0, le=10, allow_inf_nan=False)
    clip_norm: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=2**31)
    validate_every: int = Field(default=50, ge=1, le=1_000_000)
    patience: int | None = Field(default=None, ge=1, le=1_000_000)
    mixed_precision: bool = False

    @classmethod
    def for_epochs(cls, epochs: int, rows: int, **settings: Any) -> TrainingConfig:
        """The steps in which ``rows`` training rows are seen ``epochs`` times, the last one perhaps beyond."""
        probe = cls(steps=1, **settings)
        batches = epochs * (rows // min(probe.batch_size, rows))
        return cls(steps=ceil(batches / probe.accumulate), **settings)


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step done: ``step`` of ``steps`` (from 1), training losses, and validation where it was due."""

    step: int
    steps: int
    losses: Mapping[str, float]
    validation: Mapping[str, float] = field(default_factory=dict)


class Fit:
    """Mappers being trained and everything needed to go on with them."""

    def __init__(self, mappers: Mapping[Site, Mapper], config: TrainingConfig) -> None:
        self.mappers = dict(mappers)
        self.config = config
        self.step = 0
        self.best_step: int | None = None
        self._best_loss = inf
        self._best: dict[str, Tensor] = {}
        self._stale = 0
        self._parameters = {
            f"{site}.{name}": parameter
            for site, mapper in self.mappers.items()
            for name, parameter in mapper.requires_grad_(True).named_parameters()
        }
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    @classmethod
    def fresh(cls, shapes: Mapping[Site, MapperConfig], config: TrainingConfig, *, device: torch.device) -> Fit:
        """A fit of new mappers; their starting weights follow from the seed and the order of ``shapes``."""
        generator = torch.Generator().manual_seed(config.seed)
        return cls({s: build_mapper(c, generator=generator).to(device) for s, c in shapes.items()}, config)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or as many validations as ``patience`` allows brought nothing better."""
        patience = self.config.patience
        return self.step >= self.config.steps or (patience is not None and self._stale >= patience)

    @property
    def validation_due(self) -> bool:
        """Whether the step just done is one after which validation data is looked at."""
        return self.step >= self.config.steps or self.step % self.config.validate_every == 0

    def batches(self, order: BatchOrder) -> Iterable[list[int]]:
        """The rows of each batch of the next step."""
        first = self.step * self.config.accumulate
        return (order.at(place) for place in range(first, first + self.config.accumulate))

    def advance(self, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
        """One optimiser step down the mean loss of ``accumulate`` batches, each given as its loss terms.

        A batch is asked for when the graph of the one before it is free. Gives the mean of each term, ``loss``,
        ``grad_norm`` (before clipping) and ``learning_rate``. Raises TrainingError where loss or gradient is not
        finite; the mappers are then as before the step.
        """
        rate, share = self._rate(), 1 / self.config.accumulate
        self._optimizer.zero_grad(set_to_none=True)
        means: dict[str, float] = {}
        for terms in batches:
            loss = self.config.loss.total(terms)
            (loss * share).backward()  # type: ignore[no-untyped-call]
            for name, term in {**terms, "loss": loss}.items():
                means[name] = means.get(name, 0.0) + float(term.detach()) * share
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), self.config.clip_norm))
        if not (isfinite(norm) and isfinite(means["loss"])):
            raise TrainingError(
                f"loss {means['loss']} is not finite at step {self.step + 1}: lower learning_rate ({rate:g})"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self.step += 1
        return means | {"grad_norm": norm, "learning_rate": rate}

    def judge(self, validation: Mapping[str, float]) -> dict[str, float]:
        """What was seen on validation data with its ``loss``; where ``patience`` is set, the best mappers are kept."""
        loss = self.config.loss.total(validation)
        if self.config.patience is not None:
            if loss < self._best_loss:
                self._best_loss, self.best_step, self._stale = loss, self.step, 0
                self._best = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
            else:
                self._stale += 1
        return {"loss": loss, **validation}

    def settle(self) -> None:
        """Puts the mappers back to those of the best validation, where they were kept."""
        with torch.no_grad():
            for name, best in self._best.items():
                self._parameters[name].copy_(best)

    def state(self) -> dict[str, Tensor]:
        """Parameters, optimiser moments, step and best mappers so far as plain tensors, for a safetensors file."""
        state = {f"parameter.{name}": p.detach().clone() for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for key, moment in self._optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{name}.{key}"] = moment.detach().clone()
        state["step"] = torch.tensor(self.step)
        if self.best_step is not None:
            state |= {_BEST + name: best.clone() for name, best in self._best.items()}
            state["best_step"] = torch.tensor(self.best_step)
            state["best_loss"] = torch.tensor(self._best_loss, dtype=torch.float64)
        state["stale"] = torch.tensor(self._stale)
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what :meth:`state` gave; raises TrainingError where it belongs to other mappers."""
        wanted = {f"parameter.{name}": p.shape for name, p in self._parameters.items()}
        if {name: t.shape for name, t in state.items() if name.startswith("parameter.")} != wanted:
            raise TrainingError("the checkpoint holds other mappers than this job trains: start the job anew")
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state[f"parameter.{name}"])
                prefix = f"optimizer.{name}."
                self._optimizer.state[parameter] = {
                    key.removeprefix(prefix): value.clone() if key.endswith(".step") else value.to(parameter.device)
                    for key, value in state.items()
                    if key.startswith(prefix)
                }
        self.step, self._stale = int(state["step"]), int(state["stale"])
        if "best_step" in state:
            self.best_step, self._best_loss = int(state["best_step"]), float(state["best_loss"])
            self._best = {name: state[_BEST + name].to(p.device) for name, p in self._parameters.items()}

    def _rate(self) -> float:
        rate = self.config.learning_rate
        return (
            rate if self.config.schedule == "constant" else rate * 0.5 * (1 + cos(pi * self.step / self.config.steps))
        )
