"""One gradient fit in progress: mappers, optimiser and step, with a state that can be saved and taken up exactly.

Nothing in it draws at random after the start, and which rows a step sees follows from seed and step alone
(:mod:`mappers.batch_order`), so a fit that is interrupted and restored ends in the same tensors as one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import cos, pi
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mappers.errors import TrainingError
from mappers.losses import LossWeights
from mappers.modules import Mapper, MapperConfig, build_mapper
from mappers.sites import Site


class TrainingConfig(BaseModel):
    """How mappers are trained: AdamW, clipped gradients, a constant or cosine learning rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: LossWeights
    steps: int = Field(ge=1, le=1_000_000)
    batch_size: int = Field(default=16, ge=1, le=65_536)
    learning_rate: float = Field(default=1e-3, gt=0, le=10, allow_inf_nan=False)
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0, le=10, allow_inf_nan=False)
    clip_norm: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=2**31)
    validate_every: int = Field(default=50, ge=1, le=1_000_000)


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
        """Whether all steps are done."""
        return self.step >= self.config.steps

    def advance(self, loss: Tensor) -> dict[str, float]:
        """One optimiser step down ``loss``; gives ``loss``, ``grad_norm`` (before clipping) and ``learning_rate``.

        Raises TrainingError where loss or gradient is not finite; the mappers are then as before the step.
        """
        rate = self._rate()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), self.config.clip_norm))
        value = float(loss.detach())
        if not (torch.isfinite(torch.tensor([norm, value]))).all():
            raise TrainingError(f"loss {value} is not finite at step {self.step + 1}: lower learning_rate ({rate:g})")
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self.step += 1
        return {"loss": value, "grad_norm": norm, "learning_rate": rate}

    def state(self) -> dict[str, Tensor]:
        """Parameters, optimiser moments and step as plain tensors, for a safetensors file."""
        state = {f"parameter.{name}": p.detach().clone() for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for key, moment in self._optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{name}.{key}"] = moment.detach().clone()
        state["step"] = torch.tensor(self.step)
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
        self.step = int(state["step"])

    def _rate(self) -> float:
        rate = self.config.learning_rate
        return (
            rate if self.config.schedule == "constant" else rate * 0.5 * (1 + cos(pi * self.step / self.config.steps))
        )
