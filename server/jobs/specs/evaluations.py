"""What a switch or vectors do to answers, measured with controls."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from server.jobs.specs.fields import BatchSize, Frozen, Length, ModelName, Parameters, Reference, Seed, Submission

Strength = Annotated[float, Field(strict=True, ge=-100, le=100, allow_inf_nan=False)]


class UsedSwitch(Frozen):
    """A switch artifact and its strength."""

    switch: Reference
    strength: Strength = 1.0


class UsedVector(Frozen):
    """A vector artifact, the operation and its strength."""

    vector: Reference
    strength: Strength = 1.0
    operation: Literal["add", "ablate"] = "add"


class Evaluate(Parameters):
    """Answers ``limit`` of ``prompts`` without and with ``switch`` and ``vectors`` (all together), and with controls.

    Rows with a completion are compared with it; ``marker`` is a text whose share of answers is measured; ``base`` is a
    reference model that answers the same prompts.
    """

    prompts: Reference
    switch: UsedSwitch | None = None
    vectors: Annotated[tuple[UsedVector, ...], Field(max_length=8)] = ()
    marker: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    base: ModelName | None = None
    limit: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 200
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=4096)] = 64
    batch_size: BatchSize = 64
    max_length: Length = 256
    seed: Seed = 0

    @model_validator(mode="after")
    def _something_to_evaluate(self) -> Self:
        if self.switch is None and not self.vectors:
            raise ValueError("nothing would be evaluated: name a switch, vectors or both")
        return self


class EvaluateJob(Submission):
    """``name`` becomes the name of the report."""

    kind: Literal["evaluate"]
    parameters: Evaluate
