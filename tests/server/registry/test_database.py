"""Migrations agree with the rows; writers wait for each other."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text

from server.registry.database import Database
from server.registry.rows import ArtifactRow, Base


@pytest.fixture
def database(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'test.sqlite3'}")
    database.upgrade()
    yield database
    database.close()


def _row(identity: str) -> ArtifactRow:
    return ArtifactRow(id=identity, name="n", kind="vector", owner=None, created_at=0.0, size=0, manifest="{}")


def test_migrations_give_exactly_the_tables_of_the_rows(database):
    database.upgrade()
    with database.read() as session:
        assert compare_metadata(MigrationContext.configure(session.connection()), Base.metadata) == []


def test_write_ahead_log_and_foreign_keys_are_on(database):
    with database.read() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA foreign_keys")) == 1
        assert session.scalar(text("PRAGMA synchronous")) == 2


def test_a_block_that_raises_writes_nothing(database):
    def fail() -> None:
        with database.write() as session:
            session.add(_row("a"))
            session.flush()
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    with database.read() as session:
        assert session.scalars(select(ArtifactRow.id)).all() == []


def test_read_then_write_of_many_threads_loses_nothing(database, tmp_path):
    """Two Database objects stand for two writers that do not share the lock: BEGIN IMMEDIATE keeps them in line."""
    other = Database(f"sqlite:///{tmp_path / 'test.sqlite3'}")
    with database.write() as session:
        session.add(_row("counter"))

    def increment(through: Database) -> None:
        for _ in range(20):
            with through.write() as session:
                row = session.get(ArtifactRow, "counter")
                row.size += 1

    threads = [threading.Thread(target=increment, args=(through,)) for through in (database, other) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    with database.read() as session:
        assert session.get(ArtifactRow, "counter").size == 80
