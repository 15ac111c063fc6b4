"""API keys: a secret is turned into a :class:`Principal`; secrets are kept as SHA-256 only."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, Self, get_args

from server.errors import NotAuthenticated, NotPermitted

Scope = Literal["infer", "steer", "unswitch", "train", "admin", "metrics"]
EVERY_SCOPE: frozenset[Scope] = frozenset(get_args(Scope))


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sends a request. ``owner`` is written to the jobs, artifacts and generations they start."""

    owner: str
    scopes: frozenset[Scope]

    def require(self, scope: Scope) -> None:
        """Raises NotPermitted, naming the scope, where this principal lacks it."""
        if scope not in self.scopes:
            raise NotPermitted(f"this API key lacks the scope {scope!r}; ask the operator for a key that has it")

    def may_see(self, owner: str | None) -> bool:
        """Whether something of ``owner`` is visible: one's own, what belongs to nobody, everything for ``admin``."""
        return owner is None or owner == self.owner or "admin" in self.scopes


OPERATOR = Principal(owner="operator", scopes=EVERY_SCOPE)
"""Everyone on a server without keys, and whoever holds its first key: a server keeps its owner when it gets a key."""


@dataclass(frozen=True, slots=True)
class Key:
    """An issued key: the SHA-256 of its secret and whom it stands for."""

    digest: bytes
    principal: Principal

    @classmethod
    def of(cls, secret: str, principal: Principal) -> Self:
        """Hashes ``secret``, which is not kept; raises ValueError for an empty one."""
        if not secret:
            raise ValueError("an API key must not be empty; leave it unset to serve without keys on the loopback")
        return cls(_digest(secret), principal)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All issued keys. An empty ring is open: everyone is :data:`OPERATOR`, with every scope."""

    keys: tuple[Key, ...] = ()

    @classmethod
    def first(cls, secret: str | None) -> Self:
        """A ring with one key, the operator's, or an open one where ``secret`` is None."""
        return cls() if secret is None else cls((Key.of(secret, OPERATOR),))

    @property
    def open(self) -> bool:
        """Whether no key was issued, so that none is asked for."""
        return not self.keys

    def authenticate(self, secret: str | None) -> Principal:
        """The principal of ``secret``; raises NotAuthenticated. Looks at every key, whichever one fits."""
        if self.open:
            return OPERATOR
        if not secret:
            raise NotAuthenticated("no API key was sent; send the header 'Authorization: Bearer <key>'")
        found = _matching(self.keys, _digest(secret))
        if found is None:
            raise NotAuthenticated("this API key is not known; check the header 'Authorization: Bearer <key>'")
        return found


def _digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()


def _matching(keys: Iterable[Key], digest: bytes) -> Principal | None:
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key.principal
    return found
