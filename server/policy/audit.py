"""The audit log: who changed or lowered what, on which request; append-only rows, each chained to the one before.

``digest = sha256(previous + canonical JSON of the entry)``, so a row that is changed, removed from the middle or moved
breaks the chain from there on. Rows cut off at the end leave a whole chain: keep a head (``sequence`` and ``digest``,
also written to the log stream) elsewhere and let :func:`verify` look for it. No entry holds text of a prompt or answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

import structlog
from sqlalchemy import event, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from typing_extensions import TypedDict

from server.errors import Unavailable
from server.registry.artifacts import ArtifactChange
from server.registry.database import Database
from server.registry.rows import AuditRow

Action = Literal[
    "default.off",
    "default.lowered",
    "generation.changed",
    "refused",
    "policy.changed",
    "profile.written",
    "profile.deleted",
    "key.created",
    "key.deleted",
    "artifact.registered",
    "artifact.deleted",
    "artifact.named",
    "artifact.unnamed",
]
START = "0" * 64
"""``previous`` of the first entry."""

_BLOCK = 1000
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it: the id of a key (``operator`` for the first one), and the request it came with."""

    id: str
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One row. ``at`` is in seconds since the epoch."""

    sequence: int
    at: float
    action: str
    actor: str
    request_id: str | None
    detail: Mapping[str, Any]
    previous: str
    digest: str


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain stood at some time."""

    sequence: int
    digest: str


class HeadOut(TypedDict):
    """The last entry that holds together with all before it."""

    sequence: int
    digest: str


class VerificationOut(TypedDict):
    """Whether the chain is whole, and if not what is wrong where. Keep ``head`` somewhere else."""

    object: Literal["audit.verification"]
    whole: bool
    problem: str | None
    entries: int
    head: HeadOut


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of :func:`verify`: entries that hold together, and what is wrong at the first that does not."""

    entries: int
    head: Head
    problem: str | None = None

    def report(self) -> VerificationOut:
        """As HTTP and the command give it."""
        return {
            "object": "audit.verification",
            "whole": self.problem is None,
            "problem": self.problem,
            "entries": self.entries,
            "head": {"sequence": self.head.sequence, "digest": self.head.digest},
        }


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries to list, newest first: those with numbers below ``before``."""

    action: str | None = None
    actor: str | None = None
    request_id: str | None = None
    before: int | None = None
    limit: int = field(default=100)


class AuditLog:
    """The log of one server. Every method but :meth:`write_down` blocks on the database."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit")

    def record(self, action: Action, actor: Actor, detail: Mapping[str, Any]) -> None:
        """Writes one entry and returns once it is durable; raises Unavailable where that is impossible.

        Call it before what it tells of takes effect.
        """
        try:
            with self._database.write() as session:
                self.append(session, action, actor, detail)
        except SQLAlchemyError as error:
            _log.error("audit_unavailable", action=action, error=type(error).__name__)
            raise Unavailable(
                "the audit log cannot be written, and this may not be done without it: ask the operator to look at "
                "the data directory's disk",
                code="audit_unavailable",
            ) from error

    async def write_down(self, action: Action, actor: Actor, detail: Mapping[str, Any]) -> None:
        """As :meth:`record`, from the event loop: however many wait for it, they take one thread from nobody."""
        await asyncio.get_running_loop().run_in_executor(self._writer, self.record, action, actor, detail)

    def append(self, session: Session, action: Action, actor: Actor, detail: Mapping[str, Any]) -> None:
        """Adds an entry to a transaction of :meth:`Database.write`: it is kept exactly if what it tells of is."""
        last = session.scalar(select(AuditRow).order_by(AuditRow.sequence.desc()).limit(1))
        row = AuditRow(
            sequence=1 if last is None else last.sequence + 1,
            at=self._clock(),
            action=action,
            actor=actor.id,
            request_id=actor.request_id,
            detail=_canonical(detail),
            previous=START if last is None else last.digest,
        )
        row.digest = _digest(row)
        session.add(row)
        session.flush()
        told = {"sequence": row.sequence, "action": action, "actor": actor.id, "digest": row.digest}
        event.listen(session, "after_commit", lambda _: _log.info("audit", **told), once=True)

    def artifact_changed(self, session: Session, change: ArtifactChange) -> None:
        """For an :class:`ArtifactStore`: notes what becomes of artifacts, by jobs too."""
        self.append(session, change.kind, Actor(change.by or "nobody"), {"artifact": change.id, "name": change.name})

    def list(self, wanted: Filter) -> list[Entry]:
        """Entries, newest first."""
        query = select(AuditRow).order_by(AuditRow.sequence.desc()).limit(wanted.limit)
        for column, value in (
            (AuditRow.action, wanted.action),
            (AuditRow.actor, wanted.actor),
            (AuditRow.request_id, wanted.request_id),
        ):
            if value is not None:
                query = query.where(column == value)
        if wanted.before is not None:
            query = query.where(AuditRow.sequence < wanted.before)
        with self._database.read() as session:
            return [_entry(row) for row in session.scalars(query)]

    def verify(self, expected: Head | None = None) -> Verification:
        """As :func:`verify`."""
        return verify(self._database, expected)


def verify(database: Database, expected: Head | None = None) -> Verification:
    """Recomputes the whole chain from the first entry on; reads only.

    ``expected`` is a head kept from an earlier verification: the chain must still run through it.
    """
    head, count = Head(0, START), 0
    for row in _rows(database):
        if row.sequence != head.sequence + 1:
            return Verification(count, head, f"entry {row.sequence} is where {head.sequence + 1} should be")
        if row.previous != head.digest or row.digest != _digest(row):
            return Verification(count, head, f"entry {row.sequence} was changed, or one before it")
        head, count = Head(row.sequence, row.digest), count + 1
        if expected is not None and head.sequence == expected.sequence and head != expected:
            return Verification(count, head, f"entry {row.sequence} is not the one that was kept")
    if expected is not None and head.sequence < expected.sequence:
        return Verification(count, head, f"entries {head.sequence + 1} to {expected.sequence} are missing at the end")
    return Verification(count, head)


def _rows(database: Database) -> Iterator[AuditRow]:
    """In blocks: a reader must not hold one snapshot for minutes, nor the whole log in memory."""
    first = select(AuditRow).order_by(AuditRow.sequence).limit(_BLOCK)
    query = first
    while True:
        with database.read() as session:
            rows = session.scalars(query).all()
        yield from rows
        if len(rows) < _BLOCK:
            return
        query = first.where(AuditRow.sequence > rows[-1].sequence)


def _digest(row: AuditRow) -> str:
    entry = {
        "sequence": row.sequence,
        "at": row.at,
        "action": row.action,
        "actor": row.actor,
        "request_id": row.request_id,
        "detail": row.detail,
    }
    return sha256(row.previous.encode() + _canonical(entry).encode()).hexdigest()


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _entry(row: AuditRow) -> Entry:
    return Entry(
        sequence=row.sequence,
        at=row.at,
        action=row.action,
        actor=row.actor,
        request_id=row.request_id,
        detail=json.loads(row.detail),
        previous=row.previous,
        digest=row.digest,
    )
