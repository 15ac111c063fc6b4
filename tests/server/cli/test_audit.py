from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from server.policy.audit import Actor, AuditLog
from server.registry.database import Database

ENTRY = {
    "sequence": 7,
    "at": 1.0,
    "action": "default.off",
    "actor": "key_1",
    "request_id": "cmpl-1",
    "detail": {"now": []},
    "previous": "0" * 64,
    "digest": "1" * 64,
}
WHOLE = {
    "object": "audit.verification",
    "whole": True,
    "problem": None,
    "entries": 7,
    "head": {"sequence": 7, "digest": "1" * 64},
}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with three entries, its server stopped."""
    database = Database(f"sqlite:///{tmp_path / 'interlock.db'}")
    database.upgrade()
    log = AuditLog(database, clock=lambda: 1.0)
    for i in range(3):
        log.record("refused", Actor("key_1", f"req_{i}"), {"rule": "denied"})
    database.close()
    return tmp_path


def test_entries_are_listed(server, interlock):
    server.answer("GET", "/v1/audit", {"object": "list", "data": [ENTRY], "next": 7})
    ran = interlock("audit", "list", "--actor", "key_1", "--limit", "1")
    assert "default.off" in ran.out
    assert "--before 7" in ran.err
    assert server.asked[0].path == "/v1/audit?actor=key_1&limit=1"
    assert interlock("audit", "list", "--json").json["data"] == [ENTRY]


def test_a_server_is_asked_whether_the_log_is_whole(server, interlock):
    server.answer("GET", "/v1/audit/verify", WHOLE, WHOLE | {"whole": False, "problem": "entry 8 is missing"})
    ran = interlock("audit", "verify", "--head", f"7:{'1' * 64}")
    assert (ran.code, f"head 7:{'1' * 64}" in ran.out) == (0, True)
    assert server.asked[0].path == f"/v1/audit/verify?sequence=7&digest={'1' * 64}"
    broken = interlock("audit", "verify", "--json")
    assert (broken.code, broken.json["whole"], "entry 8 is missing" in broken.err) == (1, False, True)


@pytest.mark.parametrize("head", ["7", "7:x", f"0:{'1' * 64}", f"7:{'1' * 63}"])
def test_a_wrong_head_is_refused(server, interlock, head):
    assert interlock("audit", "verify", "--head", head).code == 2
    assert not server.asked


def test_a_data_directory_is_verified_without_a_server(server, interlock, data_dir):
    ran = interlock("audit", "verify", "--data-dir", str(data_dir), "--json")
    assert (ran.code, ran.json["entries"], ran.json["whole"]) == (0, 3, True)
    assert not server.asked
    head = ran.json["head"]
    kept = f"{head['sequence']}:{head['digest']}"
    assert interlock("audit", "verify", "--data-dir", str(data_dir), "--head", kept).code == 0
    with closing(sqlite3.connect(data_dir / "interlock.db")) as connection:
        connection.execute("DROP TRIGGER audit_forbids_delete")
        connection.execute("DELETE FROM audit WHERE sequence = 3")
        connection.commit()
    assert interlock("audit", "verify", "--data-dir", str(data_dir)).code == 0
    cut = interlock("audit", "verify", "--data-dir", str(data_dir), "--head", kept)
    assert (cut.code, "missing at the end" in cut.err) == (1, True)


def test_verifying_writes_nothing(interlock, data_dir):
    before = (data_dir / "interlock.db").read_bytes()
    assert interlock("audit", "verify", "--data-dir", str(data_dir)).code == 0
    assert (data_dir / "interlock.db").read_bytes() == before


def test_a_folder_without_a_log_is_told(interlock, tmp_path):
    assert interlock("audit", "verify", "--data-dir", str(tmp_path)).code == 1
    (tmp_path / "interlock.db").write_bytes(b"no database")
    ran = interlock("audit", "verify", "--data-dir", str(tmp_path))
    assert (ran.code, "cannot be read" in ran.err) == (1, True)
