"""The job table as a queue: every transition is one compare-and-set, every report of a worker is fenced by its lease.

A claimed job stays in the table. Its lease is the attempt number: a report of an attempt that is no longer the job's
current one changes nothing, so a late finish of a worker believed dead cannot overwrite its successor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.errors import Conflict
from server.jobs.changes import Changes
from server.jobs.model import RESUMABLE, Job, JobError, JobEvent, JobProgress, JobState
from server.jobs.records import add_event, compare_and_set, require_row, state_data, to_event, to_job
from server.registry.database import Database
from server.registry.rows import JobEventRow, JobRow

HELD = (JobState.RUNNING, JobState.CANCELLING)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to report for one attempt of one job."""

    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class NewJob:
    """A checked job on its way into the queue; ``inputs`` as in :class:`server.jobs.model.Job`."""

    kind: str
    name: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str]
    owner: str | None = None
    priority: int = 0


class JobQueue:
    """Jobs of one server by priority, then in the order of submission. Thread-safe.

    ``clock`` gives seconds since the epoch.
    A job whose worker dies is tried ``attempts`` times in all, then it is ``interrupted``.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float], attempts: int = 3) -> None:
        self._database = database
        self._clock = clock
        self._attempts = attempts
        self.changes = Changes()

    def submit(self, job_id: str, new: NewJob) -> Job:
        """Puts a job behind those of its priority."""
        row = JobRow(
            id=job_id,
            kind=new.kind,
            name=new.name,
            owner=new.owner,
            state=JobState.QUEUED,
            parameters=dict(new.parameters),
            inputs=dict(new.inputs),
            created_at=self._clock(),
            attempt=0,
            attempts_allowed=self._attempts,
            priority=new.priority,
            artifacts=[],
            events=1,
        )
        with self._database.write() as session:
            session.add(row)
            session.flush()
            add_event(session, row, "state", state_data(row), at=row.created_at)
            return to_job(row)

    def get(self, job_id: str) -> Job:
        """The job; raises NotFound."""
        with self._database.read() as session:
            return to_job(require_row(session, job_id))

    def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs there are of each kind and state."""
        query = select(JobRow.kind, JobRow.state, func.count()).group_by(JobRow.kind, JobRow.state)
        with self._database.read() as session:
            return {(kind, state): count for kind, state, count in session.execute(query)}

    def list(self, *, owner: str | None = None, state: JobState | None = None, limit: int = 1000) -> Sequence[Job]:
        """The newest jobs first; ``owner`` None lists everybody's."""
        query = select(JobRow).order_by(JobRow.sequence.desc()).limit(limit)
        if owner is not None:
            query = query.where(JobRow.owner == owner)
        if state is not None:
            query = query.where(JobRow.state == state)
        with self._database.read() as session:
            return [to_job(row) for row in session.scalars(query)]

    def events(self, job_id: str, after: int, *, limit: int = 500) -> tuple[Sequence[JobEvent], bool]:
        """Events with ids above ``after``, and whether the job has ended; raises NotFound.

        Old progress events are dropped, state events never: at least the last 2,000 events are there.
        """
        query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.number > after)
        with self._database.read() as session:
            ended = JobState(require_row(session, job_id).state).terminal
            events = [to_event(row) for row in session.scalars(query.order_by(JobEventRow.number).limit(limit))]
        return events, ended and len(events) < limit

    def claim(self) -> tuple[Lease, Job] | None:
        """Takes the next queued job for a new attempt; None where nothing waits."""
        now = self._clock()
        order = (JobRow.priority.desc(), JobRow.sequence)
        following = select(JobRow.id).where(JobRow.state == JobState.QUEUED).order_by(*order).limit(1)
        with self._database.write() as session:
            job_id = session.scalar(following)
            if job_id is None:
                return None
            job = self._move(
                session,
                job_id,
                (JobState.QUEUED,),
                state=JobState.RUNNING,
                attempt=JobRow.attempt + 1,
                started_at=now,
                heartbeat_at=now,
                finished_at=None,
                error=None,
            )
        self.changes.notify(job_id)
        return None if job is None else (Lease(job.id, job.attempt), job)

    def heartbeat(self, lease: Lease) -> bool:
        """Notes that the attempt is alive; False where the lease is no longer valid."""
        with self._database.write() as session:
            row = compare_and_set(session, lease.job_id, HELD, lease.attempt, {"heartbeat_at": self._clock()})
            return row is not None

    def report(self, lease: Lease, progress: JobProgress) -> bool:
        """Stores progress and an event for it; False where the lease is no longer valid."""
        data = asdict(progress)
        with self._database.write() as session:
            now = self._clock()
            changes = {"heartbeat_at": now, "progress": data, "events": JobRow.events + 1}
            row = compare_and_set(session, lease.job_id, HELD, lease.attempt, changes)
            if row is None:
                return False
            add_event(session, row, "progress", data, at=now)
        self.changes.notify(lease.job_id)
        return True

    def succeed(self, lease: Lease, artifacts: Sequence[tuple[str, str]]) -> bool:
        """``running -> succeeded`` with the (id, name) of what was made; False where that is no longer possible."""
        made = [{"id": identity, "name": name} for identity, name in artifacts]
        return self._end(lease, (JobState.RUNNING,), JobState.SUCCEEDED, artifacts=made)

    def fail(self, lease: Lease, error: JobError) -> bool:
        """``running -> failed``; False where the lease is no longer valid."""
        return self._end(lease, (JobState.RUNNING,), JobState.FAILED, error=asdict(error))

    def finish_cancel(self, lease: Lease) -> bool:
        """``cancelling -> cancelled`` once the worker is gone; False where nobody cancelled."""
        return self._end(lease, (JobState.CANCELLING,), JobState.CANCELLED)

    def give_back(self, lease: Lease) -> bool:
        """``running -> queued`` without counting the attempt: the server stops in good order."""
        return self._end(
            lease, (JobState.RUNNING,), JobState.QUEUED, attempts_allowed=JobRow.attempts_allowed + 1, finished_at=None
        )

    def lose(self, lease: Lease, reason: str) -> bool:
        """The worker died: ``running -> queued``, or ``interrupted`` after the last attempt."""
        with self._database.read() as session:
            row = require_row(session, lease.job_id)
            again = row.attempt < row.attempts_allowed
        if again:
            return self._end(lease, (JobState.RUNNING,), JobState.QUEUED, finished_at=None)
        error = JobError(
            "worker_died", f"attempt {lease.attempt} was the last one allowed: {reason}. Resume it by hand"
        )
        return self._end(lease, (JobState.RUNNING,), JobState.INTERRUPTED, error=asdict(error))

    def recover(self) -> None:
        """At start, before anything is claimed: jobs that were held by the last server go back or end."""
        with self._database.read() as session:
            rows = session.scalars(select(JobRow).where(JobRow.state.in_(HELD)).order_by(JobRow.sequence)).all()
            held = [Lease(row.id, row.attempt) for row in rows]
        for lease in held:
            if not self.finish_cancel(lease):
                self.lose(lease, "the server ended while it ran")

    def cancel(self, job_id: str) -> Job:
        """``queued -> cancelled`` or ``running -> cancelling``; a job that is cancelled already stays so.

        Raises NotFound, or Conflict for a job that ended otherwise.
        """
        with self._database.write() as session:
            job = self._move(
                session, job_id, (JobState.QUEUED,), state=JobState.CANCELLED, finished_at=self._clock()
            ) or self._move(session, job_id, (JobState.RUNNING,), state=JobState.CANCELLING)
            if job is None:
                job = to_job(require_row(session, job_id))
                if job.state not in (JobState.CANCELLING, JobState.CANCELLED):
                    raise Conflict(f"job {job_id} is {job.state}: only waiting and running jobs can be cancelled")
        self.changes.notify(job_id)
        return job

    def resume(self, job_id: str) -> Job:
        """Puts a failed, cancelled or interrupted job back with a new set of attempts; it goes on from its checkpoint.

        Raises NotFound, or Conflict for a job in another state.
        """
        with self._database.write() as session:
            job = self._move(
                session,
                job_id,
                RESUMABLE,
                state=JobState.QUEUED,
                attempts_allowed=JobRow.attempt + self._attempts,
                finished_at=None,
                error=None,
            )
            if job is None:
                state = require_row(session, job_id).state
                raise Conflict(f"job {job_id} is {state}: only failed, cancelled or interrupted jobs can be resumed")
        self.changes.notify(job_id)
        return job

    def _end(self, lease: Lease, states: Collection[JobState], state: JobState, **values: Any) -> bool:
        """A transition asked for by the holder of ``lease``."""
        changes = {"state": state, "finished_at": self._clock(), **values}
        with self._database.write() as session:
            job = self._move(session, lease.job_id, states, attempt_is=lease.attempt, **changes)
        self.changes.notify(lease.job_id)
        return job is not None

    def _move(
        self,
        session: Session,
        job_id: str,
        states: Collection[JobState],
        *,
        attempt_is: int | None = None,
        **values: Any,
    ) -> Job | None:
        """A transition out of one of ``states`` with its event; None where the job is in none of them."""
        changes = {**values, "events": JobRow.events + 1}
        row = compare_and_set(session, job_id, states, attempt_is, changes)
        if row is None:
            return None
        add_event(session, row, "state", state_data(row), at=self._clock())
        return to_job(row)
