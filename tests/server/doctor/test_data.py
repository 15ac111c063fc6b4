"""A data directory that is whole, and each way in which it is not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from mappers.artifact import Manifest, seal
from server.data_dir import ARTIFACTS_FOLDER, DATABASE_FILE
from server.doctor.data import examine_data
from server.policy.audit import Actor, AuditLog
from server.registry.artifacts import ArtifactStore
from server.registry.database import Database
from server.registry.rows import ProfileRow

Findings = dict[str, tuple[str, str]]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """One artifact, one profile bound to it, two audit entries; closed, as a stopped server leaves it."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    database = Database(f"sqlite:///{folder / DATABASE_FILE}")
    database.upgrade()
    store = ArtifactStore(folder / ARTIFACTS_FOLDER, database, clock=lambda: 1.0)
    store.reconcile()
    staged = store.new_staging()
    (staged / "rows.jsonl").write_bytes(b'{"text": "a"}\n')
    seal(staged, Manifest(kind="dataset", name="texts", created_at="2026-01-02T03:04:05+00:00"))
    record = store.register(staged, name="texts", owner=None)
    audit = AuditLog(database, clock=lambda: 1.0)
    for name in ("a", "b"):
        audit.record("profile.put", Actor("operator", None), {"name": name})
    with database.write() as session:
        session.add(
            ProfileRow(
                name="safe", owner="operator", shared=True, content={}, artifacts={"texts": record.id},
                fits_every_prompt=True, created_at=1.0, updated_at=1.0,
            )
        )  # fmt: skip
    database.close()
    return folder


def findings(folder: Path) -> Findings:
    return {one.check: (one.status, one.found) for one in examine_data(folder)}


def changing(statement: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        connection = sqlite3.connect(folder / DATABASE_FILE)
        connection.executescript(statement)
        connection.close()

    return change


def test_a_whole_directory_has_nothing_wrong(data_dir: Path) -> None:
    before = {path: path.read_bytes() for path in data_dir.rglob("*") if path.is_file()}
    found = findings(data_dir)
    assert {state for state, _ in found.values()} <= {"ok", "warn"}
    assert found["artifacts"] == ("ok", "1, every digest as it should be")
    assert found["profiles"][1].startswith("1, ")
    assert found["audit log"] == ("ok", "2 entries, the chain holds")
    assert {path: path.read_bytes() for path in before} == before


def test_one_that_is_not_there_is_fine(tmp_path: Path) -> None:
    assert findings(tmp_path / "none")["data directory"][0] == "ok"


_FORGED = "DROP TRIGGER audit_forbids_update; UPDATE audit SET actor = 'x' WHERE sequence = 1"


def _tampered(folder: Path) -> None:
    next((folder / ARTIFACTS_FOLDER).glob("*/rows.jsonl")).write_bytes(b'{"text": "b"}\n')


def _misplaced(folder: Path) -> None:
    found = next((folder / ARTIFACTS_FOLDER).glob("[0-9a-f]*"))
    found.rename(found.with_name("0" * 64))


def _scribbled(folder: Path) -> None:
    with (folder / DATABASE_FILE).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)


@pytest.mark.parametrize(
    ("harm", "check", "state", "found"),
    [
        (_tampered, "artifacts", "fail", "1 of 1"),
        (_misplaced, "artifacts", "fail", "000000000000"),
        (lambda folder: folder.chmod(0o755), "data directory", "warn", "mode 755"),
        (changing("DELETE FROM artifacts"), "profiles", "fail", "safe (texts)"),
        (changing(_FORGED), "audit log", "fail", "entry 1"),
        (changing("UPDATE alembic_version SET version_num = '0001'"), "database", "warn", "older"),
        (changing("UPDATE alembic_version SET version_num = '9'"), "database", "fail", "not known"),
        (lambda folder: (folder / DATABASE_FILE).write_bytes(b"no database"), "database", "fail", "cannot be read"),
        (_scribbled, "database", "fail", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_a_remedy(
    data_dir: Path, harm: Callable[[Path], None], check: str, state: str, found: str
) -> None:
    harm(data_dir)
    (one,) = [one for one in examine_data(data_dir) if one.check == check]
    assert one.status == state
    assert found in one.found
    assert one.remedy


def test_a_database_elsewhere_is_examined_in_place_of_the_file(data_dir: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.db"
    (data_dir / DATABASE_FILE).rename(elsewhere)
    found = {one.check: one for one in examine_data(data_dir, f"sqlite:///{elsewhere}")}
    assert found["audit log"].found == "2 entries, the chain holds"
    assert found["artifacts"].status == "ok"


@pytest.mark.parametrize("url", ["nonsense", "mysql://here/x", "sqlite:////nowhere/at/all.db"])
def test_a_database_that_cannot_be_used_is_named_without_its_url(tmp_path: Path, url: str) -> None:
    (one,) = [one for one in examine_data(tmp_path, url) if one.status == "fail"]
    assert one.check == "database"
    assert one.remedy
    assert "nowhere" not in one.found
