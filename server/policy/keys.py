"""API keys: a secret is turned into a :class:`Principal`; secrets are kept as SHA-256 only."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, Self, get_args

from server.errors import NotAuthenticated, NotPermitted
from server.policy.document import NO_LIMITS, Limits

Scope = Literal["infer", "steer", "unswitch", "train", "admin", "metrics"]
EVERY_SCOPE: frozenset[Scope] = frozenset(get_args(Scope))


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sends a request. ``owner`` is written to the jobs, artifacts and generations they start.

    ``key_id`` is how the audit log names them. ``profile`` stands in place of the model's default profile, ``limits``
    come on top of the policy's.
    """

    owner: str
    scopes: frozenset[Scope]
    key_id: str = ""
    profile: str | None = None
    limits: Limits = NO_LIMITS

    @property
    def name(self) -> str:
        """The key's id, or the owner where it has none."""
        return self.key_id or self.owner

    def require(self, scope: Scope) -> None:
        """Raises NotPermitted, naming the scope, where this principal lacks it."""
        if scope not in self.scopes:
            raise NotPermitted(f"this API key lacks the scope {scope!r}; ask the operator for a key that has it")

    def may_see(self, owner: str | None) -> bool:
        """Whether something of ``owner`` is visible: one's own, what belongs to nobody, everything for ``admin``."""
        return owner is None or owner == self.owner or "admin" in self.scopes


OPERATOR = Principal(owner="operator", scopes=EVERY_SCOPE)
"""Everyone on a server without keys, and whoever holds its first key: a server keeps its owner when it gets a key."""

NOBODY = Principal(owner="nobody", scopes=frozenset())
"""Has no key, and so no default but the model's."""


@dataclass(frozen=True, slots=True)
class Key:
    """An issued key: the SHA-256 of its secret, whom it stands for, and until when (seconds since the epoch)."""

    digest: bytes
    principal: Principal
    expires_at: float | None = None

    @classmethod
    def of(cls, secret: str, principal: Principal) -> Self:
        """Hashes ``secret``, which is not kept; raises ValueError for an empty one."""
        if not secret:
            raise ValueError("an API key must not be empty; leave it unset to serve without keys on the loopback")
        return cls(secret_digest(secret), principal)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys that are asked for. ``open`` is for a server without any: everyone is :data:`OPERATOR`."""

    keys: tuple[Key, ...] = ()
    open: bool = False

    @classmethod
    def first(cls, secret: str | None) -> Self:
        """A ring with one key, the operator's, or an open one where ``secret`` is None."""
        return cls(open=True) if secret is None else cls((Key.of(secret, OPERATOR),))

    def authenticate(self, secret: str | None, now: float) -> Principal:
        """The principal of ``secret`` at ``now``; raises NotAuthenticated. Looks at every key, whichever one fits."""
        if self.open:
            return OPERATOR
        if not secret:
            raise NotAuthenticated("no API key was sent; send the header 'Authorization: Bearer <key>'")
        found = _matching(self.keys, secret_digest(secret))
        if found is None:
            raise NotAuthenticated("this API key is not known; check the header 'Authorization: Bearer <key>'")
        if found.expires_at is not None and now >= found.expires_at:
            raise NotAuthenticated("this API key has expired; ask the operator for a new one", code="expired_api_key")
        return found.principal


def secret_digest(secret: str) -> bytes:
    """The SHA-256 that is kept in place of ``secret``: 256 random bits need neither salt nor a slow hash."""
    return sha256(secret.encode()).digest()


def _matching(keys: Iterable[Key], digest: bytes) -> Key | None:
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found
