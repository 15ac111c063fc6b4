"""Runs a job in this process, on tiny random models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mappers.artifact import verify
from mappers.manifest import Manifest
from server.jobs.channel import Channel
from server.jobs.execution import execute
from server.jobs.folder import JobFolder
from server.jobs.protocol import Execution, InputArtifact, WorkOrder
from server.jobs.specs import JOB_SPEC
from server.registry.artifacts import ArtifactRecord

Run = Callable[..., tuple[Manifest, Path]]


@pytest.fixture
def run(tmp_path, tiny_models, artifacts) -> Run:
    """``run(kind, name, inputs, **parameters)`` executes a job and gives the manifest and folder of what it staged."""

    def execute_job(
        kind: str,
        name: str,
        inputs: dict[str, ArtifactRecord],
        *,
        attempt: int = 1,
        job_id: str = "job_1",
        stop: threading.Event | None = None,
        execution: dict[str, Any] | None = None,
        **parameters: Any,
    ) -> tuple[Manifest, Path]:
        folder = JobFolder(tmp_path / "jobs" / job_id)
        folder.prepare(attempt)
        order = WorkOrder(
            server=1,
            job_id=job_id,
            attempt=attempt,
            spec=JOB_SPEC.validate_python({"kind": kind, "name": name, "parameters": parameters}),
            created_at="2026-01-02T03:04:05+00:00",
            folder=str(folder.path),
            served="tuned",
            models=tiny_models.locations(),
            artifacts={
                key: InputArtifact(id=record.id, name=record.name, path=str(record.path))
                for reference, record in inputs.items()
                for key in (reference, record.id)
            },
            execution=Execution(checkpoint_s=0.0, **(execution or {})),
        )
        with (folder.path / "messages").open("ab", buffering=0) as messages:
            execute(order, Channel(messages.fileno(), stop or threading.Event()))
        return verify(folder.staging(attempt)), folder.staging(attempt)

    return execute_job


@pytest.fixture
def register(artifacts, run) -> Callable[..., ArtifactRecord]:
    """Runs a job and registers what it staged."""

    def make(kind: str, name: str, inputs: dict[str, ArtifactRecord], **parameters: Any) -> ArtifactRecord:
        _, folder = run(kind, name, inputs, job_id=f"job_{name}", **parameters)
        return artifacts.register(folder, name=name, owner=None)

    return make
