"""A database and an artifact store in a temporary folder, and folders ready to be registered."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from mappers.artifact import Manifest, Parent, seal
from server.registry.artifacts import ArtifactStore
from server.registry.database import Database
from tests.server.conftest import BACKENDS

Stage = Callable[..., Path]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Everything here holds on both."""
    return str(request.param)


@pytest.fixture
def store(tmp_path: Path, database: Database) -> ArtifactStore:
    ticks = count(1)
    store = ArtifactStore(tmp_path / "artifacts", database, clock=lambda: float(next(ticks)))
    store.reconcile()
    return store


@pytest.fixture
def stage(store: ArtifactStore) -> Stage:
    """``stage("name", content=..., parents=...)`` gives a sealed dataset folder."""

    def make(name: str, content: bytes = b'{"text":"a"}\n', parents: tuple[Parent, ...] = ()) -> Path:
        folder = store.new_staging()
        (folder / "rows.jsonl").write_bytes(content)
        seal(folder, Manifest(kind="dataset", name=name, created_at="2026-01-02T03:04:05+00:00", parents=parents))
        return folder

    return make
