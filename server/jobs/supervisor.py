"""Runs queued jobs, each in a worker process of its own, and settles how they ended. No torch in this process.

The worker writes its artifact into a staging folder; the artifact is registered here, after the worker has said that
it is done, and only then has the job succeeded.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from mappers.errors import InterlockError
from server.jobs.attempt import Attempt, Outcome, Patience
from server.jobs.directory import ModelDirectory
from server.jobs.folder import JobFolder, JobLog
from server.jobs.model import Job, JobError, JobState
from server.jobs.process import Inbox, Interruption, WorkerProcess
from server.jobs.protocol import Done, Execution, Failed, InputArtifact, WorkOrder
from server.jobs.queue import JobQueue, Lease
from server.jobs.specs import JOB_SPEC
from server.registry.artifacts import ArtifactStore

_BOOT = (
    f"import sys; sys.path.append({str(Path(__file__).parents[2])!r}); "
    "from server.jobs.worker import main; sys.exit(main())"
)
WORKER_COMMAND = (sys.executable, "-P", "-c", _BOOT)
"""Like ``python -m server.jobs.worker``, but never a package ``server`` that happens to lie where the server runs."""

_RETRY_S = 1.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    """``concurrency`` jobs run at once; ``environment`` None hands the server's own to the workers."""

    execution: Execution = field(default_factory=Execution)
    patience: Patience = field(default_factory=Patience)
    concurrency: int = 1
    command: Sequence[str] = WORKER_COMMAND
    environment: Mapping[str, str] | None = None


class Supervisor:
    """Threads that each run one job at a time. Workers die with the thread that started them, hence with the server."""

    def __init__(
        self, jobs: JobQueue, artifacts: ArtifactStore, models: ModelDirectory, folder: Path, config: SupervisorConfig
    ) -> None:
        self._queue = jobs
        self._artifacts = artifacts
        self._models = models
        self._root = folder
        self._config = config
        self._change = threading.Condition()
        self._stopping = False
        self._wakes = 0
        self._running: dict[str, Inbox] = {}
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Takes back what the last server left running, then starts to work."""
        self._queue.recover()
        for number in range(self._config.concurrency):
            thread = threading.Thread(target=self._run, name=f"job-supervisor-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def wake(self) -> None:
        """There may be something to claim."""
        with self._change:
            self._wakes += 1
            self._change.notify_all()

    def cancel(self, job_id: str) -> None:
        """Ends the worker of a job that was set to ``cancelling``; does nothing for a job without one."""
        with self._change:
            inbox = self._running.get(job_id)
        if inbox is not None:
            inbox.put(Interruption.CANCEL)

    def stop(self) -> None:
        """Ends all workers, which write a checkpoint if they can; their jobs go back into the queue."""
        with self._change:
            self._stopping = True
            for inbox in self._running.values():
                inbox.put(Interruption.STOP)
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def log_of(self, job_id: str) -> JobLog:
        """The log of a job that exists."""
        return self._folder(job_id).log

    def _run(self) -> None:
        while not self._stopping:
            seen = self._wakes
            try:
                claimed = self._queue.claim()
            except SQLAlchemyError:
                _log.exception("job_claim_failed")
                self._pause()
                continue
            if claimed is not None:
                self._attempt(*claimed)
                continue
            with self._change:
                while not self._stopping and self._wakes == seen:
                    self._change.wait()

    def _attempt(self, lease: Lease, job: Job) -> None:
        """Runs one attempt to its end, whatever happens; the job is then ended, queued again or cancelled."""
        _log.info("job_started", job=job.id, kind=job.kind, attempt=lease.attempt)
        try:
            self._settle(lease, job, self._converse(lease, job))
        except InterlockError as error:
            refused = JobError("refused", error.message)
            self._insist(lambda: self._queue.fail(lease, refused))
        except (OSError, SQLAlchemyError) as error:
            _log.exception("job_attempt_broke", job=job.id)
            reason = f"the server could not go on with it ({type(error).__name__})"
            self._insist(lambda: self._queue.lose(lease, reason))
        self._insist(lambda: self._queue.finish_cancel(lease))
        self._folder(job.id).drop_staging()

    def _converse(self, lease: Lease, job: Job) -> Outcome:
        """Starts the worker and listens to it; raises InterlockError where an input of the job is gone."""
        order = self.order(lease, job)
        folder = self._folder(job.id)
        folder.prepare(lease.attempt)
        with self._listening(job.id) as inbox:
            process = WorkerProcess(
                self._config.command,
                # unset ones left out: parameters without effect would read as asked for
                order.model_dump_json(exclude_unset=True).encode(),
                inbox=inbox,
                log=folder.log.append,
                environment=self._config.environment,
            )
            return Attempt(process, inbox, lease, self._queue, self._config.patience).run()

    @contextmanager
    def _listening(self, job_id: str) -> Iterator[Inbox]:
        """An inbox that cancellations and the server's stop reach, also those that came just before."""
        inbox: Inbox = queue.SimpleQueue()
        with self._change:
            self._running[job_id] = inbox
            if self._stopping:
                inbox.put(Interruption.STOP)
        try:
            if self._queue.get(job_id).state is JobState.CANCELLING:
                inbox.put(Interruption.CANCEL)
            yield inbox
        finally:
            with self._change:
                del self._running[job_id]

    def order(self, lease: Lease, job: Job) -> WorkOrder:
        """What a worker of that attempt is told; raises NotFound where an input of the job is gone."""
        folder = self._folder(job.id)
        artifacts = {}
        for reference, identity in job.inputs.items():
            record = self._artifacts.get(identity)
            artifacts[reference] = InputArtifact(id=record.id, name=record.name, path=str(record.path))
        return WorkOrder(
            server=os.getpid(),
            job_id=job.id,
            attempt=lease.attempt,
            spec=JOB_SPEC.validate_python({"kind": job.kind, "name": job.name, "parameters": job.parameters}),
            created_at=datetime.fromtimestamp(job.created_at, UTC).isoformat(),
            folder=str(folder.path),
            served=self._models.served.name,
            models=self._models.locations(),
            artifacts=artifacts,
            execution=self._config.execution,
        )

    def _settle(self, lease: Lease, job: Job, outcome: Outcome) -> None:
        """Writes down how the attempt ended; raises InterlockError where the artifact it made cannot be taken."""
        folder = self._folder(job.id)
        match outcome:
            case Outcome(interruption=Interruption.CANCEL):
                pass  # the caller finishes every cancellation
            case Outcome(verdict=Done()):
                record = self._artifacts.register(folder.staging(lease.attempt), name=job.name, owner=job.owner)
                if self._queue.succeed(lease, [(record.id, record.name)]):
                    folder.drop_checkpoints()
            case Outcome(verdict=Failed(code=code, message=message)):
                self._queue.fail(lease, JobError(code, message))
            case Outcome(interruption=Interruption.STOP):
                self._queue.give_back(lease)
            case _:
                self._queue.lose(lease, outcome.ending)
        _log.info("job_attempt_ended", job=job.id, attempt=lease.attempt, ending=outcome.ending)

    def _folder(self, job_id: str) -> JobFolder:
        return JobFolder(self._root / job_id)

    def _insist(self, transition: Callable[[], bool]) -> None:
        """Repeats until the database takes it, or the server stops: no job may stay ``running`` without a worker."""
        while True:
            try:
                transition()
                return
            except SQLAlchemyError:
                _log.exception("job_transition_failed")
                if self._stopping:
                    return  # the next start takes the job back
                self._pause()

    def _pause(self) -> None:
        with self._change:
            self._change.wait_for(lambda: self._stopping, timeout=_RETRY_S)
