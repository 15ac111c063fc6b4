"""Profiles: named bundles of interventions, each bound to the artifacts that its names meant when it was written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.errors import Conflict, InvalidRequest, NotFound, NotPermitted
from server.policy.audit import Actor, AuditLog
from server.policy.keys import Principal
from server.registry.database import Database
from server.registry.rows import ApiKeyRow, PolicyRow, ProfileRow

MAX_PROFILES = 1000


@dataclass(frozen=True, slots=True)
class Profile:
    """``content`` holds ``safety_switch`` and ``steering`` as a request would; ``artifacts`` maps names to ids.

    ``shared`` profiles may be used by everybody. ``fits_every_prompt`` is False where positions are counted or matched
    in the prompt, so that some prompts have none: such a profile can be chosen but not be a default.
    """

    name: str
    owner: str
    shared: bool
    content: Mapping[str, Any]
    artifacts: Mapping[str, str]
    fits_every_prompt: bool
    created_at: float = 0.0
    updated_at: float = 0.0

    def may_be_used_by(self, principal: Principal) -> bool:
        """Whether this principal sees it."""
        return self.shared or principal.may_see(self.owner)


class ProfileStore:
    """All profiles of one server; reads come from memory, writes block on the database. Call :meth:`load` at start."""

    def __init__(self, database: Database, audit: AuditLog, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock
        self._lock = threading.Lock()
        self._profiles: Mapping[str, Profile] = {}

    def load(self) -> None:
        """Reads all profiles."""
        with self._lock, self._database.read() as session:
            self._profiles = {row.name: _profile(row) for row in session.scalars(select(ProfileRow))}

    def find(self, name: str) -> Profile | None:
        """The profile of that name, whoever may use it."""
        return self._profiles.get(name)

    def get(self, name: str, principal: Principal, *, param: str = "profile") -> Profile:
        """The profile of that name; raises NotFound, naming those there are, also for another owner's."""
        profile = self._profiles.get(name)
        if profile is None or not profile.may_be_used_by(principal):
            names = ", ".join(one.name for one in self.visible(principal)[:20]) or "none yet"
            raise NotFound(f"there is no profile {name[:96]!r}; there are: {names}", param=param)
        return profile

    def visible(self, principal: Principal) -> list[Profile]:
        """What this principal may use, by name."""
        seen = [profile for profile in self._profiles.values() if profile.may_be_used_by(principal)]
        return sorted(seen, key=lambda profile: profile.name)

    def bound_to(self, artifact_id: str) -> list[str]:
        """Names of the profiles that could not be applied without this artifact."""
        return sorted(one.name for one in self._profiles.values() if artifact_id in one.artifacts.values())

    def put(self, profile: Profile, by: Principal, actor: Actor) -> Profile:
        """Writes a profile, in place of its owner's or an admin's earlier one.

        Raises Conflict where the name is another owner's or all places are taken, NotPermitted for a profile that is a
        default unless ``by`` may lower defaults, InvalidRequest where it could not be a default any more.
        """
        with self._database.write() as session:
            row = session.get(ProfileRow, profile.name)
            if row is not None and not by.may_see(row.owner):
                raise Conflict(f"the name {profile.name!r} is in use: choose another", param="name")
            if users := default_users(session, profile.name):
                _check_default_change(by, profile, users)
            if row is None:
                _check_place(session)
                row = ProfileRow(name=profile.name, owner=profile.owner, created_at=self._clock())
            row.shared = profile.shared
            row.content = dict(profile.content)
            row.artifacts = dict(profile.artifacts)
            row.fits_every_prompt = profile.fits_every_prompt
            row.updated_at = self._clock()
            session.add(row)
            detail = {"profile": row.name, "artifacts": row.artifacts, "shared": row.shared, "default_of": users}
            self._audit.append(session, "profile.written", actor, detail)
            session.flush()
            written = _profile(row)
        self.load()
        return written

    def delete(self, name: str, by: Principal, actor: Actor) -> None:
        """Removes a profile; raises NotFound, NotPermitted for another owner's, Conflict while it is a default."""
        profile = self.get(name, by, param="name")
        if profile.owner != by.owner:
            by.require("admin")
        with self._database.write() as session:
            if users := default_users(session, name):
                raise Conflict(f"{name!r} is the default of {', '.join(users)}: give them another first", param="name")
            row = session.get(ProfileRow, name)
            if row is not None:
                session.delete(row)
                self._audit.append(session, "profile.deleted", actor, {"profile": name})
        self.load()


def default_users(session: Session, name: str) -> list[str]:
    """The models and keys whose default this profile is."""
    document = session.scalar(select(PolicyRow.document).order_by(PolicyRow.version.desc()).limit(1)) or {}
    defaults: Mapping[str, str | None] = document.get("default_profiles", {})
    models = [f"model {model}" for model, profile in defaults.items() if profile == name]
    keys = session.scalars(select(ApiKeyRow.id).where(ApiKeyRow.profile == name).order_by(ApiKeyRow.id))
    return models + [f"key {key}" for key in keys]


def check_can_be_default(session: Session, name: str, param: str) -> None:
    """Raises NotFound, or InvalidRequest for a profile that some prompts have no position for."""
    row = session.get(ProfileRow, name)
    if row is None:
        raise NotFound(f"there is no profile {name!r}: write it first, with PUT /v1/profiles/{name}", param=param)
    if not row.fits_every_prompt:
        raise InvalidRequest(f"{name!r} cannot be a default: {_UNFIT}", param=param)


_UNFIT = (
    "a default acts on every prompt, so its apply.prompt must be all, none or last or a window from 0, without match"
)


def _check_place(session: Session) -> None:
    if (session.scalar(select(func.count()).select_from(ProfileRow)) or 0) >= MAX_PROFILES:
        raise Conflict(f"there are {MAX_PROFILES} profiles already: delete one first")


def _check_default_change(by: Principal, profile: Profile, users: list[str]) -> None:
    if not {"admin", "unswitch"} <= by.scopes:
        raise NotPermitted(
            f"{profile.name!r} is the default of {', '.join(users)}: changing it takes the scopes 'admin' and "
            "'unswitch'; choose another name",
            param="name",
            code="default_protected",
        )
    if not profile.fits_every_prompt:
        raise InvalidRequest(f"{profile.name!r} is a default: {_UNFIT}", param="apply")


def _profile(row: ProfileRow) -> Profile:
    return Profile(
        name=row.name,
        owner=row.owner,
        shared=row.shared,
        content=row.content,
        artifacts=row.artifacts,
        fits_every_prompt=row.fits_every_prompt,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
