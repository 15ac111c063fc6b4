"""What both kinds of fit share: the split, settings, the loop with its checkpoints, and the facts for the manifest."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from pydantic import JsonValue, ValidationError
from torch import Tensor

from mappers.errors import DataError
from mappers.fit import Fit, StepReport, TrainingConfig
from mappers.losses import LossWeights
from mappers.mapper_config import MapperConfig
from mappers.modules import Mapper
from mappers.pair_sums import PairSums
from server.jobs.context import JobContext
from server.jobs.specs.fits import TrainMapper, TrainSwitch

_PART = "fit"
_LOSS = "loss."

Item = TypeVar("Item")
Fitted = TrainSwitch | TrainMapper


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


def mapper_config(parameters: Fitted, d_source: int, d_target: int) -> MapperConfig:
    """The shape of the mapper that is asked for; raises DataError where the widths do not allow it."""
    try:
        return MapperConfig(
            kind=parameters.mapper,
            d_source=d_source,
            d_target=d_target,
            residual=parameters.residual,
            hidden=parameters.hidden,
            rank=parameters.rank,
        )
    except ValidationError as error:
        raise DataError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def solver(parameters: Fitted) -> Callable[[PairSums], Mapper] | None:
    """The closed form that is asked for; None where the mapper is trained."""
    ridge, residual = parameters.ridge, parameters.residual
    match parameters.mapper:
        case "ridge":
            return lambda sums: sums.ridge(ridge=ridge, residual=residual)
        case "procrustes":
            return lambda sums: sums.procrustes(scale=parameters.scale, residual=residual)
        case "low_rank":
            return lambda sums: sums.low_rank(rank=parameters.rank or 0, ridge=ridge, residual=residual)
        case "affine" | "autoencoder":
            return None


def require_precision(job: JobContext, parameters: Fitted) -> None:
    """Raises DataError for mixed precision on a CPU, where bfloat16 is no faster and merely less exact."""
    if parameters.mixed_precision and job.device.type != "cuda":
        raise DataError(f"mixed_precision needs a GPU, jobs of this server run on {job.device.type}: leave it out")


def run_fit(job: JobContext, fit: Fit, reports: Iterator[StepReport]) -> dict[str, JsonValue]:
    """Takes the fit up where the last attempt left it, runs it to its end with checkpoints, and says how it ended.

    That is the last ``losses``, the number of ``steps_done`` and, with a patience, the ``best_step``. ``reports`` must
    not have been started. Raises StopRequested when told to stop.
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
    best = {} if fit.best_step is None else {"best_step": fit.best_step}
    return {"losses": dict(losses), "steps_done": fit.step, **best}


def training_config(parameters: Fitted, *, rows: int, batch_size: int) -> TrainingConfig:
    """The request's settings as the trainer takes them, for a fit on ``rows`` rows."""
    settings: dict[str, Any] = {
        "loss": LossWeights(**dict(parameters.loss), mse_form=parameters.mse_form),
        "batch_size": batch_size,
        "accumulate": parameters.accumulate,
        "learning_rate": parameters.learning_rate,
        "schedule": parameters.schedule,
        "weight_decay": parameters.weight_decay,
        "seed": parameters.seed,
        "validate_every": parameters.validate_every,
        "patience": parameters.patience,
        "mixed_precision": parameters.mixed_precision,
    }
    if parameters.epochs is not None:
        return TrainingConfig.for_epochs(parameters.epochs, rows, **settings)
    return TrainingConfig(steps=parameters.steps, **settings)


def training_facts(job: JobContext, parameters: Fitted) -> dict[str, JsonValue]:
    """The distribution and settings of a fit, for the manifest: without them nobody knows where the map is valid."""
    return {
        "job": job.order.job_id,
        "dataset": job.dataset_facts(parameters.dataset),
        "parameters": parameters.stored(),
        "threads": job.order.execution.threads,
        "model_dtype": job.order.execution.dtype,
    }
