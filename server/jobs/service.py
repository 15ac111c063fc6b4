"""Background jobs as the HTTP layer uses them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from server.errors import Overloaded
from server.jobs.checks import Checker
from server.jobs.directory import ModelDirectory
from server.jobs.model import Job, JobEvent, JobState
from server.jobs.queue import JobQueue, NewJob
from server.jobs.specs import JobSpec
from server.jobs.supervisor import Supervisor
from server.registry.artifacts import ArtifactStore

MAX_WAITING = 256


class JobService:
    """Submits, shows and steers jobs. All methods but :meth:`events` block on the database: call them from a thread.

    ``owner`` None stands for nobody in particular: it sees all artifacts. Whether a caller may see a job is for the
    HTTP layer to decide, by ``Job.owner``. ``new_id`` makes the ids.
    """

    def __init__(
        self,
        queue: JobQueue,
        supervisor: Supervisor,
        artifacts: ArtifactStore,
        models: ModelDirectory,
        *,
        new_id: Callable[[], str],
    ) -> None:
        self._queue = queue
        self._supervisor = supervisor
        self._artifacts = artifacts
        self._models = models
        self._new_id = new_id
        self._closed = False

    def start(self) -> None:
        """Takes up what the last server left and starts to work."""
        self._supervisor.start()

    def stop(self) -> None:
        """Ends event streams and workers; running jobs go back into the queue."""
        self._closed = True
        self._queue.changes.notify_all()
        self._supervisor.stop()

    def submit(self, spec: JobSpec, owner: str | None) -> Job:
        """Checks a job as far as is possible without loading a model, and queues it.

        Raises InvalidRequest or NotFound naming the field and what exists, Conflict where the name is another owner's,
        Overloaded where ``MAX_WAITING`` jobs wait already.
        """
        inputs = Checker(self._artifacts, self._models, owner).inputs_of(spec)
        if len(self._queue.list(state=JobState.QUEUED, limit=MAX_WAITING)) >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} jobs wait already: try again later", retry_after_s=60)
        parameters = spec.parameters.stored()
        job = self._queue.submit(
            f"job_{self._new_id()}",
            NewJob(spec.kind, spec.name, parameters, inputs, owner, spec.priority),
        )
        self._supervisor.wake()
        return job

    def get(self, job_id: str) -> Job:
        """The job; raises NotFound."""
        return self._queue.get(job_id)

    def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs there are of each kind and state."""
        return self._queue.counts()

    def list(self, *, owner: str | None = None, limit: int = 1000) -> Sequence[Job]:
        """The newest jobs first; ``owner`` None lists everybody's."""
        return self._queue.list(owner=owner, limit=limit)

    def cancel(self, job_id: str) -> Job:
        """Cancels a waiting job at once and a running one soon; raises NotFound, or Conflict for one that ended."""
        job = self._queue.cancel(job_id)
        self._supervisor.cancel(job_id)
        return job

    def resume(self, job_id: str) -> Job:
        """Queues a failed, cancelled or interrupted job again, to go on from its checkpoint.

        Raises NotFound, or Conflict for a job in another state.
        """
        job = self._queue.resume(job_id)
        self._supervisor.wake()
        return job

    def log(self, job_id: str) -> str:
        """What the job's processes wrote, the last mebibyte of it; raises NotFound."""
        return self._supervisor.log_of(self._queue.get(job_id).id).read()

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """Events with ids above ``after`` as they come, until the job has ended or the server stops.

        Raises NotFound at the first step.
        """
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(changed.set)

        with self._queue.changes.listening(job_id, wake):
            while not self._closed:
                changed.clear()
                events, ended = await asyncio.to_thread(self._queue.events, job_id, after)
                for event in events:
                    yield event
                    after = event.id
                if ended:
                    return
                if not events:
                    await changed.wait()
