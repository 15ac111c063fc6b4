"""The stores of access over a database in a temporary folder, with a clock that tests set."""

from __future__ import annotations

import pytest

from server.policy.audit import Actor, AuditLog, Filter
from server.registry.database import Database

ADMIN = Actor("operator", "req_1")


class Clock:
    """Seconds since the epoch, as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def audit(database: Database, clock: Clock) -> AuditLog:
    return AuditLog(database, clock=clock)


def actions(audit: AuditLog) -> list[str]:
    """What the log tells of, oldest first."""
    return [entry.action for entry in reversed(audit.list(Filter()))]
