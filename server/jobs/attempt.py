"""One attempt of one job: the conversation with its worker, from the order to how it ended."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass

from pydantic import ValidationError

from server.jobs.model import JobProgress
from server.jobs.process import Inbox, Interruption, WorkerProcess
from server.jobs.protocol import MESSAGE, Done, Failed, Heartbeat, Progress
from server.jobs.queue import JobQueue, Lease

_AFTER_KILL_S = 5.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: ``silence_s`` without a sign of life end a worker; ``grace_s`` it gets between SIGTERM and SIGKILL."""

    silence_s: float = 120.0
    grace_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: what the worker said last, who interrupted it, and how the process ended, in words."""

    verdict: Done | Failed | None
    interruption: Interruption | None
    ending: str


class Attempt:
    """Reads a worker's messages into the queue and keeps its time limits."""

    def __init__(self, process: WorkerProcess, inbox: Inbox, lease: Lease, jobs: JobQueue, patience: Patience) -> None:
        self._process = process
        self._inbox = inbox
        self._lease = lease
        self._jobs = jobs
        self._patience = patience
        self._deadline = time.monotonic() + patience.silence_s
        self._verdict: Done | Failed | None = None
        self._interruption: Interruption | None = None
        self._killed_for: str | None = None

    def run(self) -> Outcome:
        """Returns once the worker and all it started are gone."""
        try:
            while (item := self._next()) is not Interruption.ENDED:
                if isinstance(item, Interruption):
                    self._interrupt(item)
                else:
                    self._hear(item)
        finally:
            status = self._process.close()
        ending = self._killed_for or (f"ended by signal {-status}" if status < 0 else f"exit status {status}")
        return Outcome(self._verdict, self._interruption, ending)

    def _next(self) -> bytes | Interruption:
        while True:
            try:
                return self._inbox.get(timeout=max(0.0, self._deadline - time.monotonic()))
            except queue.Empty:
                if self._killed_for is not None:
                    return Interruption.ENDED  # a stray child of the worker's holds its output open
                self._kill("it gave no sign of life in time")

    def _hear(self, line: bytes) -> None:
        try:
            message = MESSAGE.validate_json(line)
        except ValidationError:
            self._kill("it wrote what no worker writes")
            return
        if isinstance(message, Done | Failed):
            self._verdict = message
        elif not self._note(message):
            self._kill("the job was taken from it")
        if self._interruption is None and self._killed_for is None:
            self._deadline = time.monotonic() + self._patience.silence_s

    def _note(self, message: Progress | Heartbeat) -> bool:
        if isinstance(message, Heartbeat):
            return self._jobs.heartbeat(self._lease)
        progress = JobProgress(message.stage, message.step, message.total, message.metrics)
        return self._jobs.report(self._lease, progress)

    def _interrupt(self, interruption: Interruption) -> None:
        if self._interruption is None:
            self._interruption = interruption
            self._process.terminate()
            self._deadline = time.monotonic() + self._patience.grace_s

    def _kill(self, reason: str) -> None:
        self._killed_for = reason
        self._process.kill()
        self._deadline = time.monotonic() + _AFTER_KILL_S
