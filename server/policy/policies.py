"""The policy that holds now, and every version that ever did."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from mappers.errors import InterlockError
from server.errors import Conflict, NotFound, NotPermitted
from server.policy.audit import Actor, AuditLog
from server.policy.document import NO_RULES, PolicyDocument
from server.policy.keys import Principal
from server.policy.policy import Policy
from server.policy.profiles import check_can_be_default
from server.registry.database import Database
from server.registry.rows import PolicyRow


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """One version: what it said, since when and by whom. Version 0 is what holds before any was written."""

    version: int
    document: PolicyDocument
    created_at: float | None = None
    created_by: str | None = None


class PolicyStore:
    """``current`` is the policy of the next request. Writes block on the database. Call :meth:`load` at start.

    ``start`` holds what the server was started with; ``model`` is the served model's name.
    """

    def __init__(
        self, database: Database, audit: AuditLog, start: Policy, *, model: str, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._audit = audit
        self._model = model
        self._clock = clock
        self._lock = threading.Lock()
        self.current = start

    def load(self) -> None:
        """Takes up the newest version; raises InterlockError where it cannot be read or contradicts the start."""
        with self._database.read() as session:
            newest = _newest(session)
        if newest is None:
            return
        try:
            document = PolicyDocument.model_validate(newest.document)
        except ValidationError as error:
            raise InterlockError(f"the stored policy (version {newest.version}) cannot be read: {error}") from error
        self._check_one_default(document)
        self.current = replace(self.current, document=document, version=newest.version)

    def get(self, version: int | None = None) -> PolicyVersion:
        """That version, by default the newest; raises NotFound."""
        with self._database.read() as session:
            row = _newest(session) if version is None else session.get(PolicyRow, version)
            if row is None:
                if version:
                    raise NotFound(f"there is no version {version} of the policy", param="version")
                return PolicyVersion(0, NO_RULES)
            return _version(row)

    def replace(self, document: PolicyDocument, expected: int, by: Principal, actor: Actor) -> PolicyVersion:
        """Writes the next version, if ``expected`` is still the newest one.

        Raises Conflict where it is not, NotFound or InvalidRequest for a default profile that cannot be one,
        NotPermitted without the scope ``unswitch``: a policy can take a default away.
        """
        if "unswitch" not in by.scopes:
            raise NotPermitted(
                "a policy can take a default away: writing one takes the scope 'unswitch' beside 'admin'",
                code="default_protected",
            )
        self._check_one_default(document)
        with self._lock:
            with self._database.write() as session:
                newest = _newest(session)
                version = 0 if newest is None else newest.version
                if version != expected:
                    raise Conflict(
                        f"the policy is at version {version} by now, not {expected}: read it again and apply your "
                        "change to that",
                        param="version",
                        code="version_conflict",
                    )
                for model, profile in document.default_profiles.items():
                    if profile is not None:
                        check_can_be_default(session, profile, f"default_profiles.{model}")
                row = PolicyRow(
                    version=version + 1,
                    document=document.model_dump(mode="json"),
                    created_at=self._clock(),
                    created_by=actor.id,
                )
                session.add(row)
                detail = {"version": row.version, "from": {} if newest is None else newest.document, "to": row.document}
                self._audit.append(session, "policy.changed", actor, detail)
                session.flush()
                written = _version(row)
            self.current = replace(self.current, document=document, version=written.version)
        return written

    def _check_one_default(self, document: PolicyDocument) -> None:
        if self.current.default_switch is not None and document.default_profiles.get(self._model) is not None:
            raise Conflict(
                f"the server was started with --switch {self.current.default_switch} and the policy names a default "
                f"profile for {self._model!r}: use one of them",
                param="default_profiles",
            )


def _newest(session: Session) -> PolicyRow | None:
    return session.scalar(select(PolicyRow).order_by(PolicyRow.version.desc()).limit(1))


def _version(row: PolicyRow) -> PolicyVersion:
    return PolicyVersion(row.version, PolicyDocument.model_validate(row.document), row.created_at, row.created_by)
