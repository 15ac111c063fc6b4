"""The stores of access over a database in a temporary folder, with a clock that tests set."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from server.policy.audit import Actor, AuditLog, Filter
from server.registry.database import Database
from tests.server.conftest import BACKENDS

ADMIN = Actor("operator", "req_1")


class Clock:
    """Seconds since the epoch, as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Everything here holds on both."""
    return str(request.param)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def audit(database: Database, clock: Clock) -> AuditLog:
    return AuditLog(database, clock=clock)


def actions(audit: AuditLog) -> list[str]:
    """What the log tells of, oldest first."""
    return [entry.action for entry in reversed(audit.list(Filter()))]


def forbid_inserts(session: Session, table: str, message: str) -> None:
    """Makes the database refuse new rows, as a full disk would."""
    if session.get_bind().dialect.name == "sqlite":
        session.execute(
            text(f"CREATE TRIGGER full_disk BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, '{message}'); END")
        )
        return
    session.execute(
        text(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{message}'; END $$"
        )
    )
    session.execute(text(f"CREATE TRIGGER full_disk BEFORE INSERT ON {table} EXECUTE FUNCTION full_disk()"))
