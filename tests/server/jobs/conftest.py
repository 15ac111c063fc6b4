"""A job queue and an artifact store over a database in a temporary folder, and what a server would build on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from mappers.dataset import write_dataset
from server.jobs.directory import ModelDirectory
from server.jobs.model import Job
from server.jobs.queue import JobQueue, NewJob
from server.registry.artifacts import ArtifactRecord, ArtifactStore
from server.registry.database import Database
from server.types import ModelInfo

Submit = Callable[..., Job]
Dataset = Callable[..., ArtifactRecord]
CREATED = "2026-01-02T03:04:05+00:00"


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
def artifacts(tmp_path: Path, database: Database) -> ArtifactStore:
    store = ArtifactStore(tmp_path / "artifacts", database, clock=time.time)
    store.reconcile()
    return store


@pytest.fixture
def dataset(artifacts: ArtifactStore) -> Dataset:
    """``dataset(name, lines, owner=None)`` registers JSON lines."""

    def make(name: str, lines: tuple[bytes, ...] = (b'{"prompt": "hi"}',), owner: str | None = None) -> ArtifactRecord:
        folder = artifacts.new_staging()
        write_dataset(folder, lines, name=name, created_at=CREATED)
        return artifacts.register(folder, name=name, owner=owner)

    return make


@pytest.fixture
def served() -> ModelInfo:
    return ModelInfo(
        name="tuned",
        architecture="LlamaForCausalLM",
        layers=3,
        width=32,
        vocab_size=100,
        context=128,
        dtype="float32",
        device="cpu",
        config_digest="1" * 64,
    )


@pytest.fixture
def models(served: ModelInfo) -> ModelDirectory:
    return ModelDirectory(served, "models/tuned", {"base": "models/base", "small": "models/small"})


@pytest.fixture
def submit(queue: JobQueue) -> Submit:
    """``submit(owner=None)`` puts ``job_1``, ``job_2`` ... into the queue."""
    numbers = count(1)

    def make(owner: str | None = None, name: str = "safe") -> Job:
        parameters = {"base": "base", "dataset": "d", "sites": [{"layer": 1}]}
        new = NewJob(kind="train_switch", name=name, parameters=parameters, inputs={}, owner=owner)
        return queue.submit(f"job_{next(numbers)}", new)

    return make
