"""The database: SQLite in WAL mode by default, any SQLAlchemy URL otherwise.

SQLite takes the write lock at BEGIN IMMEDIATE, so two writers wait for each other instead of failing at COMMIT; within
the process a lock keeps them in line. Only the server process opens the database; workers report over pipes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.orm import Session

MIGRATIONS = Path(__file__).parent / "migrations"
"""Folder of the schema's history."""
_BUSY_TIMEOUT_MS = 30_000


class Database:
    """Sessions over one database. Thread-safe: each call opens its own session.

    ``url`` is an SQLAlchemy URL such as ``sqlite:////var/lib/interlock/interlock.sqlite3``. Nothing is opened before
    the first use; call :meth:`upgrade` once at start.
    """

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        self._writer = self._engine
        self._write_lock = threading.Lock()
        if self._engine.dialect.name == "sqlite":
            self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
            _configure_sqlite(self._engine)

    def upgrade(self) -> None:
        """Brings the tables to this version's schema; does nothing if they are there already."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self._write_lock, self._writer.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

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
        self._engine.dispose()


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
