"""``generate_dataset``: prompts and answers that a model writes itself, kept in a checkpoint batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from pydantic import JsonValue
from torch import Tensor

from mappers.dataset import write_dataset
from mappers.errors import DataError
from mappers.on_policy import Sampler
from server.jobs.context import JobContext, binding
from server.jobs.specs.data import GenerateDataset

_PART = "rows"
_SEED_STRIDE = 1 << 21
"""More than twice the rows of a job: no two batches of any two seeds draw alike."""


def generate_dataset(job: JobContext, parameters: GenerateDataset) -> None:
    """Stages the dataset, the same for equal parameters. Raises DataError where the model writes nothing."""
    name = parameters.model or job.order.served
    loaded = job.load(name)
    sampler = Sampler(loaded, parameters.temperature, parameters.max_new_tokens)
    drawn, lines = _unpack(job.checkpoints.load(_PART) or {})
    while drawn < parameters.rows:
        count = min(parameters.batch_size, parameters.rows - drawn)
        rows = sampler.rows(count, parameters.seed * _SEED_STRIDE + 2 * drawn)
        lines += [row.model_dump_json(exclude_none=True).encode() for row in rows]
        drawn += count
        job.step("writing", drawn, parameters.rows, {"rows": len(lines)}, _PART, partial(_pack, drawn, lines))
    if not lines:
        raise DataError(f"{name!r} ended each of {drawn} texts before it wrote a word: import a dataset instead")
    facts: dict[str, JsonValue] = {
        "job": job.order.job_id,
        "model": binding(name, loaded).model_dump(),
        "parameters": parameters.stored(),
        "drawn": drawn,
        "threads": job.order.execution.threads,
        "model_dtype": job.order.execution.dtype,
    }
    write_dataset(job.staging, lines, name=job.order.spec.name, created_at=job.order.created_at, facts=facts)


def _pack(drawn: int, lines: list[bytes]) -> dict[str, Tensor]:
    """How many rows were drawn, and those that are kept as JSON lines, as tensors."""
    content = bytearray(b"".join(line + b"\n" for line in lines))
    lines_as_bytes = torch.frombuffer(content, dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)
    return {"drawn": torch.tensor(drawn), "lines": lines_as_bytes}


def _unpack(tensors: Mapping[str, Tensor]) -> tuple[int, list[bytes]]:
    if not tensors:
        return 0, []
    return int(tensors["drawn"]), tensors["lines"].numpy().tobytes().splitlines()
