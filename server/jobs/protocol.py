"""What server and worker say to each other: one order on standard input, then one JSON object a line back. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from server.jobs.specs import JobSpec

MAX_LINE = 1 << 20

Text = Annotated[str, Field(max_length=4096)]
Short = Annotated[str, Field(max_length=96)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputArtifact(_Frozen):
    """An artifact that the job reads: its content is fixed by ``id``, whatever its name points at by now."""

    id: Short
    name: Short
    path: Text


class Execution(_Frozen):
    """How a worker runs: where models are put, and how little it may disturb the server.

    ``threads`` bounds torch's CPU threads, ``nice`` is added to the process's niceness, a checkpoint is written every
    ``checkpoint_s`` seconds and a sign of life sent every ``heartbeat_s`` seconds.
    """

    device: Short = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = False
    threads: int = Field(default=1, ge=1, le=1024)
    nice: int = Field(default=10, ge=0, le=19)
    checkpoint_s: float = Field(default=10.0, ge=0, le=3600, allow_inf_nan=False)
    heartbeat_s: float = Field(default=5.0, gt=0, le=60, allow_inf_nan=False)


class WorkOrder(_Frozen):
    """Everything a worker needs: no name is left to look up.

    ``folder`` is a :class:`server.jobs.folder.JobFolder`, ``models`` maps names to
    folders or hub ids, ``artifacts`` maps each reference in the parameters, and each id behind it, to where it lies.
    """

    server: int = Field(ge=1, le=2**31, description="process id of the server: the worker ends with it")
    job_id: Short
    attempt: int = Field(ge=1, le=2**31)
    spec: JobSpec
    created_at: Short
    folder: Text
    served: Text
    models: dict[Text, Text] = Field(max_length=64)
    artifacts: dict[Short, InputArtifact] = Field(max_length=64)
    execution: Execution


class Heartbeat(_Frozen):
    """The worker is alive."""

    type: Literal["heartbeat"] = "heartbeat"


class Progress(_Frozen):
    """Fields as in :class:`server.jobs.model.JobProgress`."""

    type: Literal["progress"] = "progress"
    stage: Short
    step: int = Field(default=0, ge=0, le=2**53)
    total: int | None = Field(default=None, ge=0, le=2**53)
    metrics: dict[Short, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict, max_length=64)


class Done(_Frozen):
    """The artifact lies whole in the attempt's staging folder, to be registered under the job's name."""

    type: Literal["done"] = "done"


class Failed(_Frozen):
    """The job cannot succeed, now or again; ``message`` is safe to show."""

    type: Literal["failed"] = "failed"
    code: Short
    message: Text


Message = Annotated[Heartbeat | Progress | Done | Failed, Field(discriminator="type")]
MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
