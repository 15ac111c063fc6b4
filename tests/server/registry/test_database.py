"""Migrations agree with the rows; writers wait for each other."""

from __future__ import annotations

import threading
from multiprocessing import get_context

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text

from server.registry.database import Database, DatabaseError
from server.registry.rows import ArtifactRow, Base


def _row(identity: str) -> ArtifactRow:
    return ArtifactRow(id=identity, name="n", kind="vector", owner=None, created_at=0.0, size=0, manifest="{}")


def test_migrations_give_exactly_the_tables_of_the_rows(database):
    database.upgrade()
    with database.read() as session:
        assert compare_metadata(MigrationContext.configure(session.connection()), Base.metadata) == []


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
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


def increment(url: str, times: int) -> None:
    """What a lost update would show in: the new value is made of one that was read."""
    database = Database(url)
    for _ in range(times):
        with database.write() as session:
            row = session.get(ArtifactRow, "counter")
            row.size += 1
    database.close()


@pytest.mark.parametrize("workers", [threading.Thread, get_context("spawn").Process], ids=["threads", "processes"])
def test_no_transaction_is_lost(database, database_url, workers):
    with database.write() as session:
        session.add(_row("counter"))
    running = [workers(target=increment, args=(database_url, 25)) for _ in range(3)]
    for worker in running:
        worker.start()
    for worker in running:
        worker.join()
    with database.read() as session:
        assert session.get(ArtifactRow, "counter").size == 75


def test_a_reader_sees_one_state(database):
    with database.write() as session:
        session.add(_row("counter"))
    with database.read() as reader:
        assert reader.scalar(select(ArtifactRow.size)) == 0
        with database.write() as session:
            session.get(ArtifactRow, "counter").size = 9
        assert reader.scalar(select(ArtifactRow.size)) == 0
    with database.read() as reader:
        assert reader.scalar(select(ArtifactRow.size)) == 9


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_two_servers_do_not_share_a_database(database, database_url):
    database.own()
    other = Database(database_url)
    with pytest.raises(DatabaseError, match="in use by another server"):
        other.own()
    database.close()
    other.own()
    other.close()


@pytest.mark.parametrize("url", ["mysql://root@localhost/x", "interlock.db", "postgresql://localhost/x"])
def test_other_urls_are_refused_with_one_that_would_do(url):
    with pytest.raises(DatabaseError, match=r"write postgresql\+psycopg://USER@HOST/NAME"):
        Database(url)
