"""A job as everybody outside ``jobs`` sees it. A leaf: no torch, no database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from server.errors import NotFound


class JobState(StrEnum):
    """Where a job stands.

    ``queued -> running -> succeeded | failed``; ``queued -> cancelled``; ``running -> cancelling -> cancelled``; a job
    whose worker died goes ``running -> queued`` and from its last attempt to ``interrupted``. ``failed``,
    ``cancelled`` and ``interrupted`` jobs can be resumed: ``-> queued``.
    """

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    @property
    def terminal(self) -> bool:
        """True once nothing more happens unless somebody resumes the job."""
        return self in TERMINAL


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED})
RESUMABLE = TERMINAL - {JobState.SUCCEEDED}


@dataclass(frozen=True, slots=True)
class JobProgress:
    """``step`` of ``total`` (None: not known) in a named stage; ``metrics`` such as losses, finite numbers only."""

    stage: str
    step: int = 0
    total: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job ended badly; ``message`` is safe to show to the caller."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """One background job. Times are seconds since the epoch; ``attempt`` is 0 before the first start.

    ``inputs`` maps each artifact named in ``parameters`` to the id it had when the job was submitted. Of the jobs that
    wait, those of higher ``priority`` come first.
    """

    id: str
    kind: str
    name: str
    state: JobState
    owner: str | None
    parameters: Mapping[str, Any]
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    attempt: int = 0
    progress: JobProgress | None = None
    error: JobError | None = None
    artifacts: tuple[str, ...] = ()
    artifact_names: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One numbered happening of a job (``id`` counts from 1 within the job).

    ``state``: ``{"state", "attempt", "error", "artifacts", "artifact_names"}``; ``progress``: the fields of
    :class:`JobProgress`.
    """

    id: int
    kind: Literal["state", "progress"]
    at: float
    data: Mapping[str, Any]


def no_such_job(job_id: str) -> NotFound:
    """The error for a job that is not there and for one of somebody else's: nobody learns which of the two it is."""
    return NotFound(f"there is no job {job_id[:96]!r}: GET /v1/jobs lists those there are", param="id")
