"""Data that the server makes itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from server.jobs.specs.fields import BatchSize, Count, ModelName, Parameters, Seed, Submission


class GenerateDataset(Parameters):
    """Chats, prompt and answer both written by ``model`` (None: the served one); texts where it has no chat template.

    ``max_new_tokens`` bounds prompts and answers alike.
    """

    model: ModelName | None = None
    rows: Count
    temperature: Annotated[float, Field(strict=True, gt=0, le=10, allow_inf_nan=False)] = 1.0
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=4096)] = 128
    batch_size: BatchSize = 64
    seed: Seed = 0


class GenerateDatasetJob(Submission):
    """``name`` becomes the name of the dataset."""

    kind: Literal["generate_dataset"]
    parameters: GenerateDataset
