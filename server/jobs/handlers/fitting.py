"""What both kinds of fit share: the split, the trainer's settings, and what the manifest says about the training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from pydantic import JsonValue

from mappers.errors import DataError
from mappers.fit import TrainingConfig
from mappers.losses import LossWeights
from server.jobs.context import JobContext
from server.jobs.specs import TrainMapper, TrainSwitch

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
