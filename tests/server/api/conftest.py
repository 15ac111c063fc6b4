"""An application over fakes (and a real artifact store), and clients for it."""

from __future__ import annotations

import re
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
from server.policy.audit import AuditLog
from server.policy.key_store import KeyStore
from server.policy.keys import Key, KeyRing, Principal
from server.policy.policies import PolicyStore
from server.policy.policy import Policy
from server.policy.profiles import ProfileStore
from server.policy.receipts import ReceiptSigner
from server.registry.artifacts import ArtifactStore
from server.registry.database import Database
from tests.server.api.fakes import FakeCatalog, FakeCodec, FakeEngine, FakeJobs

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi |prod|"}], "max_tokens": 4}
COMPLETION = {"model": "fake", "prompt": "Once", "max_tokens": 4}

LEAK = re.compile(r"Traceback|\.py\b|site-packages|\b0x[0-9a-f]{6,}|(?<![\w.])/(?:tmp|home|root|usr|var|etc|opt|srv)/")
"""What no error may tell: tracebacks, addresses in memory, paths of the machine."""

NO_POLICY = Policy()
OPEN = KeyRing.first(None)

MakeServices = Callable[..., Services]


def now() -> float:
    return 1_700_000_000.5


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with all tables, to be copied: making one takes longer than most tests."""
    file = tmp_path_factory.mktemp("database") / "empty.sqlite3"
    database = Database(f"sqlite:///{file}")
    database.upgrade()
    database.close()
    return file


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> Iterator[Database]:
    shutil.copyfile(empty_database, tmp_path / "test.sqlite3")
    database = Database(f"sqlite:///{tmp_path / 'test.sqlite3'}")
    yield database
    database.close()


@pytest.fixture
def audit(database: Database) -> AuditLog:
    return AuditLog(database, clock=lambda: 5.0)


@pytest.fixture
def artifacts(tmp_path: Path, database: Database, audit: AuditLog) -> ArtifactStore:
    ticks = count(1)
    clock = lambda: float(next(ticks))  # noqa: E731
    store = ArtifactStore(tmp_path / "artifacts", database, clock=clock, on_change=audit.artifact_changed)
    store.reconcile()
    return store


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make_services(engine: FakeEngine, artifacts: ArtifactStore, database: Database, audit: AuditLog) -> MakeServices:
    """``make_services(policy=Policy(...), keys=KeyRing(...))``: services over the fakes, any part replaced."""

    def make(policy: Policy = NO_POLICY, keys: KeyRing = OPEN, **parts: Any) -> Services:
        clock = parts.get("wall_clock", now)
        ids = count(1)
        stores = {
            "policies": PolicyStore(database, audit, policy, model="fake", clock=clock),
            "profiles": ProfileStore(database, audit, clock=clock),
            "keys": KeyStore(database, audit, keys, clock=clock),
        }
        for store in stores.values():
            store.load()
        defaults: dict[str, Any] = {
            "engine": engine,
            "codec": FakeCodec(),
            "catalog": FakeCatalog(),
            "artifacts": artifacts,
            "jobs": FakeJobs(),
            **stores,
            "audit": audit,
            "signer": ReceiptSigner(b"k" * 32),
            "metrics": Metrics(CollectorRegistry(), "fake"),
            "wall_clock": clock,
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
