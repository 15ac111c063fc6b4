"""A throwaway PostgreSQL cluster for tests, on a socket of its own, run from the binaries of Debian's package."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from server.registry.database import Database

_FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "listen_addresses=")


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class Cluster:
    """Databases with all tables, copied from one that was migrated once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count()
        self._admin = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        self.create("migrated", None)
        database = Database(self.url("migrated"))
        database.upgrade()
        database.close()

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://interlock@/{name}?host={self._folder}"

    def create(self, name: str, template: str | None = "migrated") -> str:
        with self._admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else "")))
        return self.url(name)

    @contextmanager
    def fresh(self, template: str | None = "migrated") -> Iterator[str]:
        """The URL of a new database, dropped at the end."""
        name = f"test_{next(self._numbers)}"
        yield self.create(name, template)
        with self._admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))

    def close(self) -> None:
        self._admin.dispose()


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Skips where there is no PostgreSQL, or root has nobody to run it as: it refuses to run as root."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed here (Debian: apt-get install postgresql)")
    user = "postgres" if os.geteuid() == 0 else None
    # A socket's path has room for 107 characters, which pytest's own folders can exceed.
    with tempfile.TemporaryDirectory(prefix="interlock-pg-") as name:
        folder = Path(name)
        if user is not None:
            try:
                shutil.chown(folder, user)
            except LookupError:
                pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres here")
        _run(user, binaries / "initdb", "-D", folder / "data", "-U", "interlock", "-A", "trust", "--no-sync")
        options = " ".join(f"-c {setting}" for setting in (*_FAST, f"unix_socket_directories={folder}"))
        control = (binaries / "pg_ctl", "-D", folder / "data", "-l", folder / "log", "-w", "-t", "120")
        _run(user, *control, "-o", options, "start")
        try:
            cluster = Cluster(folder)
            yield cluster
            cluster.close()
        finally:
            _run(user, *control, "-m", "immediate", "stop")


def _run(user: str | None, *command: object) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        user=user,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
