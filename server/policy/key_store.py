"""Issued API keys, kept in the database and looked up in memory: a change holds for the next request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from secrets import token_hex

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from server.errors import Conflict, InvalidRequest, NotFound, NotPermitted
from server.policy.audit import Actor, AuditLog
from server.policy.document import NO_LIMITS, Limits
from server.policy.keys import Key, KeyRing, Principal, Scope, secret_digest
from server.policy.profiles import check_can_be_default
from server.registry.database import Database
from server.registry.rows import ApiKeyRow

MAX_KEYS = 256
"""Every request is compared with all of them."""
KEY_PREFIX = "ilk_"
_NOTED_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class NewKey:
    """What an operator decides about a key. ``owner`` None makes it an owner of its own."""

    name: str
    scopes: frozenset[Scope]
    owner: str | None = None
    expires_at: float | None = None
    profile: str | None = None
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An issued key, without its secret. Times in seconds since the epoch; ``last_used_at`` to the minute."""

    id: str
    name: str
    owner: str
    scopes: frozenset[Scope]
    profile: str | None
    limits: Limits
    created_at: float
    expires_at: float | None
    last_used_at: float | None

    @property
    def principal(self) -> Principal:
        """Whom it stands for."""
        return Principal(self.owner, self.scopes, self.id, self.profile, self.limits)


class KeyStore:
    """All keys of one server: those of ``first``, which are not stored, and the issued ones. Call :meth:`load`.

    :meth:`authenticate` touches memory only; everything else blocks on the database.
    """

    def __init__(self, database: Database, audit: AuditLog, first: KeyRing, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._audit = audit
        self._first = first
        self._clock = clock
        self._lock = threading.Lock()
        self._ring = first
        self._noted: dict[str, float] = {}

    @property
    def open(self) -> bool:
        """Whether nobody is asked for a key: none was given at start and none was issued before."""
        return self._ring.open

    def load(self) -> None:
        """Reads the issued keys. A server that has any is not open, also without a first key."""
        with self._lock, self._database.read() as session:
            keys = _keys(session)
            self._ring = KeyRing((*self._first.keys, *keys), self._ring.open and not keys)

    def authenticate(self, secret: str | None) -> Principal:
        """The principal of ``secret``; raises NotAuthenticated."""
        return self._ring.authenticate(secret, self._clock())

    def is_due(self, principal: Principal) -> bool:
        """Whether :meth:`note_use` should be called: once a minute for each issued key."""
        if not principal.key_id:
            return False
        return self._clock() - self._noted.get(principal.key_id, 0.0) >= _NOTED_EVERY_S

    def note_use(self, principal: Principal) -> None:
        """Writes down when the key was last used."""
        now = self._noted[principal.key_id] = self._clock()
        with self._database.write() as session:
            session.execute(update(ApiKeyRow).where(ApiKeyRow.id == principal.key_id).values(last_used_at=now))

    def list(self) -> list[ApiKey]:
        """All issued keys, newest first, expired ones among them."""
        with self._database.read() as session:
            rows = session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at.desc(), ApiKeyRow.id))
            return [_api_key(row) for row in rows]

    def create(self, new: NewKey, by: Principal, actor: Actor) -> tuple[ApiKey, str]:
        """Issues a key; the secret is in no other place than this answer.

        Raises NotPermitted where it would give more than ``by`` has, NotFound or InvalidRequest for a profile that
        cannot be a default or an expiry in the past, Conflict on an open server and where all places are taken.
        """
        _check_grant(new, by)
        if self.open:
            raise Conflict(
                "this server asks nobody for a key: restart it with INTERLOCK_API_KEY set, then issue others with that",
                code="open_server",
            )
        now = self._clock()
        if new.expires_at is not None and new.expires_at <= now:
            raise InvalidRequest("this time has passed already: name a later one", param="expires_at")
        secret = KEY_PREFIX + token_hex(32)
        identity = f"key_{token_hex(12)}"
        with self._database.write() as session:
            if (session.scalar(select(func.count()).select_from(ApiKeyRow)) or 0) >= MAX_KEYS:
                raise Conflict(f"there are {MAX_KEYS} keys already: delete one first")
            if new.profile is not None:
                check_can_be_default(session, new.profile, "profile")
            row = ApiKeyRow(
                id=identity,
                name=new.name,
                digest=secret_digest(secret).hex(),
                owner=new.owner or identity,
                scopes=sorted(new.scopes),
                profile=new.profile,
                limits=new.limits.model_dump(mode="json"),
                created_at=now,
                expires_at=new.expires_at,
                last_used_at=None,
            )
            session.add(row)
            self._audit.append(session, "key.created", actor, _told(row))
            session.flush()
            created = _api_key(row)
        self.load()
        return created, secret

    def delete(self, key_id: str, actor: Actor) -> None:
        """Takes a key back; the next request with it is refused. Raises NotFound."""
        with self._database.write() as session:
            row = session.get(ApiKeyRow, key_id)
            if row is None:
                raise NotFound(f"there is no key {key_id[:96]!r}: GET /v1/keys lists those there are", param="id")
            self._audit.append(session, "key.deleted", actor, {"key": row.id, "name": row.name})
            session.delete(row)
        self.load()


def _check_grant(new: NewKey, by: Principal) -> None:
    if more := sorted(new.scopes - by.scopes):
        raise NotPermitted(
            f"a key can only give scopes it has itself, and this one lacks {', '.join(map(repr, more))}: leave them "
            "out, or use a key that has them",
            param="scopes",
            code="scope_not_held",
        )
    if by.profile is not None or by.limits != NO_LIMITS:
        raise NotPermitted(
            "a key with a profile or limits of its own cannot issue keys, which would not have them: use another",
            code="limited_key",
        )
    if new.profile is not None and "unswitch" not in by.scopes:
        raise NotPermitted(
            "a key's profile stands in place of the default: giving one takes the scope 'unswitch'",
            param="profile",
            code="default_protected",
        )


def _keys(session: Session) -> list[Key]:
    found = map(_api_key_and_digest, session.scalars(select(ApiKeyRow)))
    return [Key(bytes.fromhex(digest), key.principal, key.expires_at) for key, digest in found]


def _api_key_and_digest(row: ApiKeyRow) -> tuple[ApiKey, str]:
    return _api_key(row), row.digest


def _api_key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        owner=row.owner,
        scopes=frozenset(row.scopes),  # type: ignore[arg-type]  # only scopes were ever written
        profile=row.profile,
        limits=Limits.model_validate(row.limits),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )


def _told(row: ApiKeyRow) -> Mapping[str, object]:
    return {
        "key": row.id,
        "name": row.name,
        "owner": row.owner,
        "scopes": row.scopes,
        "profile": row.profile,
        "limits": row.limits,
        "expires_at": row.expires_at,
    }
