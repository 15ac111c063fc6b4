"""The chain: what breaks it, what cannot, and that nothing happens unrecorded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from server.errors import Unavailable
from server.policy.audit import START, Actor, AuditLog, Filter, Head, verify
from server.registry.database import Database
from tests.server.policy.conftest import ADMIN, forbid_inserts


def fill(audit: AuditLog, count: int = 5) -> None:
    for i in range(count):
        audit.record("refused", Actor(f"key_{i % 2}", f"req_{i}"), {"rule": "denied", "n": i, "ö": [1.5, None]})


@pytest.fixture
def tamper(database_url) -> Iterator[Callable[[str], None]]:
    """As somebody with the file or the database in hand would: triggers taken out first."""
    engine = create_engine(database_url)

    def run(statement: str) -> None:
        on = " ON audit" if engine.dialect.name == "postgresql" else ""
        with engine.begin() as connection:
            for trigger in ("audit_forbids_update", "audit_forbids_delete"):
                connection.execute(text(f"DROP TRIGGER {trigger}{on}"))
            connection.execute(text(statement))

    yield run
    engine.dispose()


def test_an_empty_log_is_whole(audit):
    assert audit.verify().problem is None
    assert audit.verify().head == Head(0, START)


def test_entries_are_chained_and_read_back(audit):
    fill(audit)
    found = audit.verify()
    assert (found.problem, found.entries, found.head.sequence) == (None, 5, 5)
    newest, *_ = entries = audit.list(Filter())
    assert newest.detail == {"rule": "denied", "n": 4, "ö": [1.5, None]}
    assert newest.digest == found.head.digest
    assert [one.previous for one in entries] == [*(one.digest for one in entries[1:]), START]


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'x'", "DELETE FROM audit", "UPDATE audit SET at = at"])
def test_the_database_itself_forbids_changes(audit, database, statement):
    fill(audit)
    with pytest.raises(IntegrityError, match="append-only"), database.write() as session:
        session.execute(text(statement))
    assert audit.verify().entries == 5


@pytest.mark.parametrize(
    ("statement", "whole"),
    [
        ("UPDATE audit SET actor = 'key_9' WHERE sequence = 3", 2),
        ("UPDATE audit SET at = at + 1 WHERE sequence = 3", 2),
        ("UPDATE audit SET action = 'key.created' WHERE sequence = 3", 2),
        ("UPDATE audit SET request_id = NULL WHERE sequence = 3", 2),
        ("UPDATE audit SET detail = replace(detail, 'denied', 'other') WHERE sequence = 3", 2),
        ("UPDATE audit SET previous = digest WHERE sequence = 3", 2),
        ("UPDATE audit SET digest = previous WHERE sequence = 5", 4),
        ("UPDATE audit SET sequence = 9 WHERE sequence = 5", 4),
        ("DELETE FROM audit WHERE sequence = 3", 2),
        ("DELETE FROM audit WHERE sequence = 1", 0),
        (f"INSERT INTO audit VALUES (0, 1, 'refused', 'x', NULL, '{{}}', '{START}', '{START}')", 0),
        (f"INSERT INTO audit VALUES (6, 1, 'refused', 'x', NULL, '{{}}', '{START}', '{START}')", 5),
    ],
)
def test_whatever_is_changed_is_found(audit, tamper, statement, whole):
    fill(audit)
    tamper(statement)
    found = audit.verify()
    assert found.problem is not None
    assert (found.entries, found.head.sequence) == (whole, whole)


def test_a_kept_head_finds_what_was_cut_off_or_written_anew(audit, tamper):
    fill(audit)
    kept = audit.verify().head
    fill(audit, 2)
    assert audit.verify(kept).problem is None
    tamper("DELETE FROM audit WHERE sequence > 4")
    assert audit.verify().problem is None
    assert "missing at the end" in audit.verify(kept).problem
    audit.record("refused", ADMIN, {"forged": True})
    assert audit.verify().problem is None
    assert "not the one that was kept" in audit.verify(kept).problem


def test_many_threads_make_one_chain(audit):
    threads = [threading.Thread(target=fill, args=(audit, 10)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (audit.verify().problem, audit.verify().entries) == (None, 40)


def test_two_processes_make_one_chain(audit, database_url, clock):
    other_database = Database(database_url)
    other = AuditLog(other_database, clock=clock)
    threads = [threading.Thread(target=fill, args=(log, 15)) for log in (audit, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other_database.close()
    assert (audit.verify().problem, audit.verify().entries) == (None, 30)


def test_a_log_that_cannot_be_written_is_an_error(audit, database):
    with database.write() as session:
        forbid_inserts(session, "audit", "disk full")
    with pytest.raises(Unavailable) as refused:
        audit.record("default.off", ADMIN, {})
    assert refused.value.code == "audit_unavailable"
    assert "disk full" not in refused.value.message


def test_entries_of_a_transaction_that_fails_are_not_kept(audit, database):
    def fail() -> None:
        with database.write() as session:
            audit.append(session, "key.created", ADMIN, {})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert audit.list(Filter()) == []


def test_filters_and_pages(audit):
    fill(audit, 7)
    audit.record("key.created", ADMIN, {})
    assert [one.sequence for one in audit.list(Filter(actor="key_1"))] == [6, 4, 2]
    assert [one.sequence for one in audit.list(Filter(action="key.created"))] == [8]
    assert [one.sequence for one in audit.list(Filter(request_id="req_3"))] == [4]
    assert [one.sequence for one in audit.list(Filter(before=4, limit=2))] == [3, 2]


def test_long_logs_are_read_in_blocks(audit, database, monkeypatch):
    monkeypatch.setattr("server.policy.audit._BLOCK", 3)
    fill(audit, 7)
    assert verify(database).entries == 7
    fill(audit, 2)
    assert verify(database).entries == 9
