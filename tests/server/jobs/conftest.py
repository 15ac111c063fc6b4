"""A job queue over a database in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from server.jobs.model import Job
from server.jobs.queue import JobQueue, NewJob
from server.registry.database import Database

Submit = Callable[..., Job]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'test.sqlite3'}")
    database.upgrade()
    yield database
    database.close()


@pytest.fixture
def queue(database: Database) -> JobQueue:
    ticks = count(1)
    return JobQueue(database, clock=lambda: float(next(ticks)))


@pytest.fixture
def submit(queue: JobQueue) -> Submit:
    """``submit(owner=None)`` puts ``job_1``, ``job_2`` ... into the queue."""
    numbers = count(1)

    def make(owner: str | None = None, kind: str = "train_switch") -> Job:
        new = NewJob(kind=kind, name="safe", parameters={"steps": 3}, inputs={"d": "art_1"}, owner=owner)
        return queue.submit(f"job_{next(numbers)}", new)

    return make
