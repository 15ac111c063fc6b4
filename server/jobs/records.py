"""Rows of the job tables as the values of :mod:`server.jobs.model`, and the one statement that changes a job."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from server.jobs.model import Job, JobError, JobEvent, JobProgress, JobState, no_such_job
from server.registry.rows import JobEventRow, JobRow

_PROGRESS_KEPT = 2000
_PRUNE_EVERY = 100


def require_row(session: Session, job_id: str) -> JobRow:
    """The row of a job; raises NotFound."""
    row = session.scalar(select(JobRow).where(JobRow.id == job_id))
    if row is None:
        raise no_such_job(job_id)
    return row


def compare_and_set(
    session: Session, job_id: str, states: Collection[JobState], attempt: int | None, values: Mapping[str, Any]
) -> JobRow | None:
    """Writes ``values`` if the job is in one of ``states`` (and in that attempt); gives the row as it is afterwards."""
    statement = update(JobRow).where(JobRow.id == job_id, JobRow.state.in_(states))
    if attempt is not None:
        statement = statement.where(JobRow.attempt == attempt)
    changed = statement.values(values).returning(JobRow).execution_options(populate_existing=True)
    return session.scalars(changed).one_or_none()


def add_event(
    session: Session, row: JobRow, kind: Literal["state", "progress"], data: Mapping[str, Any], *, at: float
) -> None:
    """Stores event number ``row.events``; every now and then drops progress events older than the last 2,000."""
    session.add(JobEventRow(job_id=row.id, number=row.events, kind=kind, at=at, data=dict(data)))
    if kind == "progress" and row.events % _PRUNE_EVERY == 0:
        old = JobEventRow.number <= row.events - _PROGRESS_KEPT
        session.execute(delete(JobEventRow).where(JobEventRow.job_id == row.id, JobEventRow.kind == kind, old))


def state_data(row: JobRow) -> dict[str, Any]:
    """The content of a ``state`` event."""
    return {
        "state": row.state,
        "attempt": row.attempt,
        "error": row.error,
        "artifacts": [artifact["id"] for artifact in row.artifacts],
        "artifact_names": [artifact["name"] for artifact in row.artifacts],
    }


def to_event(row: JobEventRow) -> JobEvent:
    """An event row as a value."""
    return JobEvent(id=row.number, kind="state" if row.kind == "state" else "progress", at=row.at, data=row.data)


def to_job(row: JobRow) -> Job:
    """A job row as a value."""
    return Job(
        id=row.id,
        kind=row.kind,
        name=row.name,
        state=JobState(row.state),
        owner=row.owner,
        parameters=row.parameters,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        attempt=row.attempt,
        progress=None if row.progress is None else JobProgress(**row.progress),
        error=None if row.error is None else JobError(**row.error),
        artifacts=tuple(artifact["id"] for artifact in row.artifacts),
        artifact_names=tuple(artifact["name"] for artifact in row.artifacts),
        inputs=row.inputs,
        priority=row.priority,
    )
