"""Background jobs: submit, watch, cancel, resume. What they make can be used in the next request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import Field
from starlette.responses import Response
from typing_extensions import TypedDict

from server.api.auth import Caller, needs
from server.api.json_body import JsonRoute
from server.api.schemas.answers import error_responses
from server.api.schemas.bounds import Id, QueryModel
from server.api.services import InjectedServices
from server.jobs.model import no_such_job
from server.jobs.specs import JobSpec

if TYPE_CHECKING:
    from server.jobs.model import Job, JobProgress

router = APIRouter(route_class=JsonRoute, dependencies=[needs("train")], tags=["Jobs"])

State = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled", "interrupted"]


class JobFilter(QueryModel):
    """How many jobs to list."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class ProgressOut(TypedDict):
    """``step`` of ``total`` (null: not known) in a named stage, with figures such as losses."""

    stage: str
    step: int
    total: int | None
    metrics: Mapping[str, float]


class JobErrorOut(TypedDict):
    """Why the job ended badly."""

    code: str
    message: str


class JobOut(TypedDict):
    """A job; times in seconds since the epoch. ``artifacts`` are the ids of what it made."""

    id: str
    object: Literal["job"]
    kind: str
    name: str
    state: State
    created_at: float
    started_at: float | None
    finished_at: float | None
    attempt: int
    priority: int
    progress: ProgressOut | None
    error: JobErrorOut | None
    artifacts: list[str]
    artifact_names: list[str]
    parameters: Mapping[str, Any]


class JobList(TypedDict):
    """Jobs, newest first."""

    object: Literal["list"]
    data: list[JobOut]


def _own_job(
    job_id: Annotated[Id, Path()], services: InjectedServices, principal: Caller
) -> Any:  # Job, which is no type FastAPI has to look at
    job = services.jobs.get(job_id)
    if not principal.may_see(job.owner):
        raise no_such_job(job_id)
    return job


OwnJob = Annotated[Any, Depends(_own_job)]


@router.post(
    "/v1/jobs", summary="Submit a job", status_code=202, responses=error_responses(400, 401, 403, 404, 409, 413, 429)
)
def submit_job(body: JobSpec, services: InjectedServices, principal: Caller) -> JobOut:
    """Answers at once; the job runs in a process of its own and the server goes on serving.

    Models are named as the operator named them at start, data and vectors by artifact name. Follow the job by polling
    `GET /v1/jobs/{id}` or by the events of `GET /v1/jobs/{id}/events`. To go before others (`priority` above 0)
    takes the scope `admin`.
    """
    services.policy.check_publish(principal, body.name)
    if body.priority > 0:
        principal.require("admin")
    return _job(services.jobs.submit(body, principal.owner))


@router.get("/v1/jobs", summary="List jobs", responses=error_responses(400, 401, 403))
def list_jobs(services: InjectedServices, principal: Caller, wanted: Annotated[JobFilter, Query()]) -> JobList:
    """The caller's own, newest first; with the scope `admin` everybody's."""
    owner = None if "admin" in principal.scopes else principal.owner
    return {"object": "list", "data": [_job(job) for job in services.jobs.list(owner=owner, limit=wanted.limit)]}


@router.get("/v1/jobs/{job_id}", summary="Show a job", responses=error_responses(400, 401, 403, 404))
def show_job(job: OwnJob) -> JobOut:
    """State, progress, and what it made or why it failed."""
    return _job(job)


@router.post("/v1/jobs/{job_id}/cancel", summary="Cancel a job", responses=error_responses(400, 401, 403, 404, 409))
def cancel_job(job: OwnJob, services: InjectedServices) -> JobOut:
    """A waiting job ends at once, a running one at its next step."""
    return _job(services.jobs.cancel(job.id))


@router.post("/v1/jobs/{job_id}/resume", summary="Resume a job", responses=error_responses(400, 401, 403, 404, 409))
def resume_job(job: OwnJob, services: InjectedServices) -> JobOut:
    """Goes on from the last checkpoint of a job that failed, was cancelled or was interrupted."""
    return _job(services.jobs.resume(job.id))


@router.get(
    "/v1/jobs/{job_id}/log",
    summary="What the job's process wrote",
    response_class=PlainTextResponse,
    responses=error_responses(400, 401, 403, 404),
)
def job_log(job: OwnJob, services: InjectedServices) -> Response:
    """The end of its log as plain text."""
    return PlainTextResponse(services.jobs.log(job.id))


@router.get(
    "/v1/jobs/{job_id}/events",
    summary="Follow a job",
    response_class=EventSourceResponse,
    responses=error_responses(400, 401, 403, 404),
)
async def job_events(
    job: OwnJob,
    services: InjectedServices,
    last_event_id: Annotated[int, Header(ge=0, le=2**53)] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events `state` and `progress`, with ids; ends with the job. Send `Last-Event-ID` to continue."""
    async for event in services.jobs.events(job.id, after=last_event_id):
        data = {"at": event.at, **event.data}
        yield ServerSentEvent(data=data, event=event.kind, id=str(event.id))


def _job(job: Job) -> JobOut:
    return {
        "id": job.id,
        "object": "job",
        "kind": job.kind,
        "name": job.name,
        "state": job.state.value,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "attempt": job.attempt,
        "priority": job.priority,
        "progress": None if job.progress is None else _progress(job.progress),
        "error": None if job.error is None else {"code": job.error.code, "message": job.error.message},
        "artifacts": list(job.artifacts),
        "artifact_names": list(job.artifact_names),
        "parameters": dict(job.parameters),
    }


def _progress(progress: JobProgress) -> ProgressOut:
    return {
        "stage": progress.stage,
        "step": progress.step,
        "total": progress.total,
        "metrics": dict(progress.metrics),
    }
