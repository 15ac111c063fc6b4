"""A database of any earlier schema is brought to this one, with all that is in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from server.registry import database as module
from server.registry.database import Database
from server.registry.rows import Base

ROWS = {
    "0001": (
        "INSERT INTO artifacts VALUES ('art_1', 'safe', 'switch', 'alice', 5.0, 7, '{}')",
        "INSERT INTO artifact_names VALUES ('safe', 'art_1', 'alice')",
        "INSERT INTO artifact_parents VALUES ('art_1', 'art_0')",
        "INSERT INTO jobs (id, kind, name, state, parameters, inputs, created_at, attempt, attempts_allowed, artifacts,"
        " events) VALUES ('job_1', 'train_switch', 'safe', 'queued', '{}', '{}', 5.0, 0, 3, '[]', 1)",
        "INSERT INTO job_events VALUES ('job_1', 1, 'state', 5.0, '{}')",
    ),
    "0002": (
        "INSERT INTO profiles VALUES ('calm', 'alice', true, '{}', '{\"safe\": \"art_1\"}', true, 5.0, 6.0)",
        "INSERT INTO api_keys VALUES ('key_1', 'k', 'd', 'alice', '[]', 'calm', '{}', 5.0, NULL, NULL)",
        "INSERT INTO policies VALUES (1, '{}', 5.0, 'operator')",
        "INSERT INTO audit VALUES (1, 5.0, 'policy.changed', 'operator', NULL, '{}', 'a', 'b')",
    ),
    "0003": (),
    "0004": (),
}


def config() -> Config:
    found = Config()
    found.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
    return found


def at_revision(url: str, revision: str, down: bool = False) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        settings = config()
        settings.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(settings, revision)
    engine.dispose()


@pytest.fixture
def url(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a database without tables."""
    if backend == "postgresql":
        with request.getfixturevalue("cluster").fresh(None) as url:
            yield url
    else:
        yield f"sqlite:///{tmp_path / 'old.sqlite3'}"


@pytest.fixture(params=sorted(ROWS))
def old(request: pytest.FixtureRequest, url: str) -> tuple[str, str]:
    """URL and revision of a database of that schema, with a row in each table."""
    at_revision(url, request.param)
    engine = create_engine(url)
    with engine.begin() as connection:
        for revision, statements in ROWS.items():
            for statement in statements if revision <= request.param else ():
                connection.execute(text(statement))
    engine.dispose()
    return url, request.param


def content(url: str, tables: Iterable[str]) -> dict[str, list[dict[str, object]]]:
    engine = create_engine(url)
    with engine.connect() as connection:
        rows = {
            one: [dict(row) for row in connection.execute(text(f"SELECT * FROM {one}")).mappings()] for one in tables
        }
    engine.dispose()
    return rows


def tables_of(url: str) -> set[str]:
    engine = create_engine(url)
    names = set(inspect(engine).get_table_names()) - {"alembic_version"}
    engine.dispose()
    return names


def test_an_upgrade_keeps_every_row(old: tuple[str, str]) -> None:
    url, _ = old
    tables = tables_of(url)
    before = content(url, tables)
    assert all(before.values())
    database = Database(url)
    database.upgrade()
    database.upgrade()
    with database.read() as session:
        assert compare_metadata(MigrationContext.configure(session.connection()), Base.metadata) == []
    database.close()
    after = content(url, tables)
    for table, rows in before.items():
        assert [{name: row[name] for name in rows[0]} for row in after[table]] == rows


def test_a_downgrade_takes_back_what_came_later_and_no_more(old: tuple[str, str]) -> None:
    url, revision = old
    tables = tables_of(url)
    before = content(url, tables)
    at_revision(url, "head")
    at_revision(url, revision, down=True)
    assert tables_of(url) == tables
    assert content(url, tables) == before


def test_every_revision_has_rows_to_keep() -> None:
    """A schema that is not tried here would be the one that loses something."""
    scripts = ScriptDirectory.from_config(config())
    assert {script.revision for script in scripts.walk_revisions()} == set(ROWS)


def test_the_history_is_one_line() -> None:
    scripts = ScriptDirectory.from_config(config())
    assert [script.revision for script in scripts.walk_revisions()][-2:] == ["0002", "0001"]
    assert len(scripts.get_heads()) == 1
