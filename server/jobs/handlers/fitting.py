"""What both kinds of fit share: the split, settings, the loop with its checkpoints, and the facts for the manifest."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from pydantic import JsonValue
from torch import Tensor

from mappers.errors import DataError
from mappers.fit import Fit, StepReport, TrainingConfig
from mappers.losses import LossWeights
from server.jobs.context import JobContext
from server.jobs.specs.fits import TrainMapper, TrainSwitch

_PART = "fit"
_LOSS = "loss."

Item = TypeVar("Item")


def split(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Training and held-out items, each in the order given; where a fraction is asked for, at least one of each.

    Raises DataError where there are too few items.
    """
    if len(items) < (2 if fraction > 0 else 1):
        raise DataError(
            f"only {len(items)} rows of the dataset can be used: add rows, raise max_length or set "
            "validation_fraction to 0"
        )
    held = min(max(round(fraction * len(items)), 1), len(items) - 1) if fraction > 0 else 0
    chosen = set(random.Random(seed).sample(range(len(items)), held))
    training = [item for place, item in enumerate(items) if place not in chosen]
    return training, [items[place] for place in sorted(chosen)]


def run_fit(job: JobContext, fit: Fit, reports: Iterator[StepReport]) -> dict[str, float]:
    """Takes the fit up where the last attempt left it, runs it to its end with checkpoints, gives the last losses.

    ``reports`` must not have been started. Raises StopRequested when told to stop.
    """
    losses: dict[str, float] = {}
    if (state := job.checkpoints.load(_PART)) is not None:
        fit.restore(state)
        losses = {name.removeprefix(_LOSS): float(value) for name, value in state.items() if name.startswith(_LOSS)}

    def save() -> dict[str, Tensor]:
        return fit.state() | {_LOSS + name: torch.tensor(value, dtype=torch.float64) for name, value in losses.items()}

    for report in reports:
        losses = dict(report.losses)
        metrics = losses | {f"validation_{name}": value for name, value in report.validation.items()}
        job.step("training", report.step, report.steps, metrics, _PART, save)
    return losses


def training_config(parameters: TrainSwitch | TrainMapper) -> TrainingConfig:
    """The request's settings as the trainer takes them."""
    return TrainingConfig(
        loss=LossWeights(kl=parameters.loss.kl, mse=parameters.loss.mse),
        steps=parameters.steps,
        batch_size=parameters.batch_size,
        learning_rate=parameters.learning_rate,
        seed=parameters.seed,
    )


def training_facts(job: JobContext, parameters: TrainSwitch | TrainMapper) -> dict[str, JsonValue]:
    """The distribution and settings of a fit, for the manifest: without them nobody knows where the map is valid."""
    return {
        "job": job.order.job_id,
        "dataset": job.dataset_facts(parameters.dataset),
        "parameters": parameters.stored(),
        "threads": job.order.execution.threads,
        "model_dtype": job.order.execution.dtype,
    }
