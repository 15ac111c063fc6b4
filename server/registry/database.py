"""The database: SQLite in WAL mode by default, PostgreSQL by its URL.

There is one writer at a time on both, so what a transaction read is still so when it writes. SQLite takes the write
lock at BEGIN IMMEDIATE, PostgreSQL an advisory lock at the first statement: writers wait for each other instead of
failing at COMMIT; within the process a lock keeps them in line. Only the server process opens the database; workers
report over pipes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session

from mappers.errors import InterlockError

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_MS = 30_000
_WRITERS = 0x1171_0C4B
_SERVERS = 0x1171_0C4C
"""Numbers of PostgreSQL's advisory locks: of each writing transaction, and of the server that uses the database."""


class DatabaseError(InterlockError):
    """The database cannot be used by this server; the message says why and what to do."""


class Database:
    """Sessions over one database. Thread-safe: each call opens its own session.

    ``url`` is an SQLAlchemy URL such as ``sqlite:////var/lib/interlock/interlock.sqlite3`` or
    ``postgresql+psycopg://user@host/interlock``. Nothing is opened before the first use; call :meth:`upgrade` once at
    start. Raises DatabaseError for a URL of another kind, or without the driver it needs.
    """

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self._write_lock = threading.Lock()
        self._owned: Connection | None = None
        if self._engine.dialect.name == "sqlite":
            self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
            _configure_sqlite(self._engine)
        else:
            self._writer = self._engine.execution_options(isolation_level="READ COMMITTED")
            _configure_postgresql(self._writer)

    def upgrade(self) -> None:
        """Brings the tables to this version's schema; does nothing if they are there already.

        Raises DatabaseError, before anything is changed, where a later version wrote them.
        """
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self._write_lock, self._writer.begin() as connection:
            _check_known(connection)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def revision(self) -> str | None:
        """The schema of the tables as they are, None where there are none."""
        with self._engine.connect() as connection:
            return _revision(connection)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one consistent state and is rolled back at the end."""
        with Session(self._engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """The one writing session at a time: committed at the end of the block, rolled back if it raises."""
        with self._write_lock, Session(self._writer) as session, session.begin():
            yield session

    def close(self) -> None:
        """Closes every connection."""
        if self._owned is not None:
            self._owned.close()
        self._engine.dispose()

    def own(self) -> None:
        """Keeps other servers away until :meth:`close`; raises DatabaseError where one uses the database.

        A file is kept by the data directory it lies in (:mod:`server.data_dir`), so this concerns PostgreSQL alone.
        """
        if self._engine.dialect.name == "sqlite":
            return
        connection = self._engine.execution_options(isolation_level="AUTOCOMMIT").connect()
        if not connection.scalar(select(func.pg_try_advisory_lock(_SERVERS))):
            connection.close()
            raise DatabaseError("the database is in use by another server: stop it, or give this one its own")
        self._owned = connection


def _engine(url: str) -> Engine:
    try:
        name = make_url(url).drivername
        if name == "sqlite":
            return create_engine(url)
        if name == "postgresql+psycopg":
            return create_engine(url, isolation_level="REPEATABLE READ", pool_pre_ping=True)
    except ArgumentError:
        raise DatabaseError("the database's URL cannot be read: write postgresql+psycopg://USER@HOST/NAME") from None
    except ImportError as error:
        raise DatabaseError("PostgreSQL takes the extra: pip install 'interlock[postgres]'") from error
    raise DatabaseError(f"a database of {name} cannot be used: write postgresql+psycopg://USER@HOST/NAME")


def known_revisions() -> list[str]:
    """The schemas that this version can open, its own first."""
    return [script.revision for script in ScriptDirectory(str(_MIGRATIONS)).walk_revisions()]


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _check_known(connection: Connection) -> None:
    current, known = _revision(connection), known_revisions()
    if current is not None and current not in known:
        raise DatabaseError(
            f"it was written by a newer version of Interlock (schema {current}, this one knows up to {known[0]}): "
            "start that version, or restore a copy made before it ran"
        )


def _configure_postgresql(writer: Engine) -> None:
    @event.listens_for(writer, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")


def _configure_sqlite(engine: Engine) -> None:
    """The driver's own transaction handling is switched off, so that BEGIN is ours to choose."""

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {_BUSY_TIMEOUT_MS}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))
