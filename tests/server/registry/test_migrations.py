"""A database of the first schema is brought to this one, with all that is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from server.registry import database as module
from server.registry.database import Database

ROWS = (
    "INSERT INTO artifacts VALUES ('art_1', 'safe', 'switch', 'alice', 5.0, 7, '{}')",
    "INSERT INTO artifact_names VALUES ('safe', 'art_1', 'alice')",
    "INSERT INTO artifact_parents VALUES ('art_1', 'art_0')",
    "INSERT INTO jobs (id, kind, name, state, parameters, inputs, created_at, attempt, attempts_allowed, artifacts, "
    "events) VALUES ('job_1', 'train_switch', 'safe', 'queued', '{}', '{}', 5.0, 0, 3, '[]', 1)",
    "INSERT INTO job_events VALUES ('job_1', 1, 'state', 5.0, '{}')",
)
TABLES = ("artifacts", "artifact_names", "artifact_parents", "jobs", "job_events")


def config() -> Config:
    found = Config()
    found.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
    return found


def at_revision(file: Path, revision: str, down: bool = False) -> None:
    engine = create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        settings = config()
        settings.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(settings, revision)
    engine.dispose()


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A database file of the first schema, with a row in each table."""
    file = tmp_path / "old.sqlite3"
    at_revision(file, "0001")
    engine = create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        for statement in ROWS:
            connection.execute(text(statement))
    engine.dispose()
    return file


def content(file: Path) -> dict[str, list[tuple[object, ...]]]:
    engine = create_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        rows = {table: [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}"))] for table in TABLES}
    engine.dispose()
    return rows


def test_an_upgrade_keeps_every_row(first: Path) -> None:
    before = content(first)
    database = Database(f"sqlite:///{first}")
    database.upgrade()
    database.upgrade()
    database.close()
    assert content(first) == before
    assert all(before.values())


def test_a_downgrade_takes_back_what_came_later_and_no_more(first: Path) -> None:
    before = content(first)
    at_revision(first, "head")
    at_revision(first, "0001", down=True)
    assert content(first) == before
    engine = create_engine(f"sqlite:///{first}")
    assert set(inspect(engine).get_table_names()) == {*TABLES, "alembic_version"}
    engine.dispose()


def test_the_history_is_one_line() -> None:
    scripts = ScriptDirectory.from_config(config())
    assert [script.revision for script in scripts.walk_revisions()][-2:] == ["0002", "0001"]
    assert len(scripts.get_heads()) == 1
