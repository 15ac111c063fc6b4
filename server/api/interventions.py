"""From wishes to interventions ready for the engine. Everything that can be wrong is found before a token is drawn.

All of it may read files and the database: not for the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from mappers.errors import InterlockError
from server.api.services import Services
from server.api.wishes import Wish, Wishes, bundle_of, default_bundle
from server.errors import InvalidRequest, Unavailable
from server.policy.audit import Actor
from server.policy.keys import Principal
from server.policy.policy import Named, Setting
from server.types import InterventionSpec

if TYPE_CHECKING:
    from server.engine.text import EncodedPrompt
    from server.interventions.catalog import ResolvedIntervention

_log = structlog.get_logger(__name__)


class Resolver:
    """The interventions of one request, each looked up once however many prompts there are."""

    def __init__(self, services: Services, wishes: Wishes) -> None:
        self._services = services
        self._wishes = wishes
        self._found: dict[InterventionSpec, ResolvedIntervention] = {}
        self._weakened = wishes.weakened

    @property
    def weakens(self) -> bool:
        """Whether anything of the default is lowered, left out or counteracted; known after :meth:`check`."""
        return bool(self._weakened)

    def check(self) -> None:
        """What the policy, other owners and the default have to say about artifacts.

        Raises NotFound for a named artifact of somebody else's, NotPermitted for what a rule forbids, and Unavailable
        where the default cannot be loaded, also for a caller who may do without it.
        """
        wishes = self._wishes
        self._check_visible()
        if wishes.weakened:
            for wish in wishes.default:
                self.find(wish)
        vectors_are_on = any(wish.setting.kind == "vector" for wish in wishes.default)
        names_matter = vectors_are_on or wishes.policy.names_matter(wishes.principal)
        named = self._with_names if names_matter else _without_names
        wanted, default = [named(wish) for wish in wishes.all], [named(wish) for wish in wishes.default]
        self._weakened += wishes.policy.check_counteracting(wishes.principal, wanted, default)
        wishes.policy.check_rules(wishes.principal, wanted, default, wishes.weakened, wishes.switch_param)

    def resolve(self, wishes: Iterable[Wish], prompt: EncodedPrompt | None) -> tuple[ResolvedIntervention, ...]:
        """In the same order, with positions in ``prompt``, which is None for a running generation."""
        specs = [(wish, wish.spec(prompt)) for wish in wishes]
        return tuple(self._resolve(wish, spec) for wish, spec in specs if spec is not None)

    def find(self, wish: Wish) -> ResolvedIntervention:
        """What a wish stands for, wherever it is to act."""
        return self._resolve(wish, wish.anywhere())

    def record_weakening(self, request_id: str) -> None:
        """Where the default is weakened: writes down who did it, before it is done. Raises Unavailable."""
        wishes = self._wishes
        if not self.weakens:
            return
        off = not any(wish.setting.is_same_as(one) for wish in wishes.all for one in self._weakened)
        detail = {
            "default": _told(wish.setting for wish in wishes.default),
            "now": _told(wish.setting for wish in wishes.all),
            "profile": wishes.profile,
            "policy": wishes.policy.name,
        }
        actor = Actor(wishes.principal.name, request_id)
        self._services.audit.record("default.off" if off else "default.lowered", actor, detail)

    def _check_visible(self) -> None:
        principal = self._wishes.principal
        if "admin" in principal.scopes:
            return
        for wish in self._wishes.all:
            if wish.name is not None and not wish.vouched:
                param = wish.param if wish.setting.kind == "switch" else f"{wish.param}.vector"
                self._services.artifacts.get(wish.name, owner=principal.owner, param=param)
            if wish.gate is not None and wish.probe is None:
                self._services.artifacts.get(wish.gate.probe, owner=principal.owner, param=f"{wish.param}.gate")

    def _resolve(self, wish: Wish, spec: InterventionSpec) -> ResolvedIntervention:
        if spec not in self._found:
            self._found[spec] = resolve(self._services, wish, spec)
        return self._found[spec]

    def _with_names(self, wish: Wish) -> Named:
        if wish.name is None:
            return Named(wish.setting)
        found = self.find(wish)
        aliases, others = self._services.artifacts.names_of(found.digest)
        probes: frozenset[str] = frozenset()
        if found.gate_mark is not None:
            probes = self._services.artifacts.names_of(found.gate_mark.digest)[0] | {found.gate_mark.digest}
        return Named(wish.setting, aliases | {found.digest, wish.artifact or wish.name}, others | {wish.name}, probes)


def resolve(services: Services, wish: Wish, spec: InterventionSpec) -> ResolvedIntervention:
    """Looks one up; raises InvalidRequest or NotFound, and Unavailable where it belongs to the default."""
    try:
        found = services.catalog.resolve(spec)
    except InterlockError as error:
        if wish.origin != "default":
            raise
        _log.error("default_unavailable", name=wish.name, artifact=wish.artifact, reason=error.message)
        raise Unavailable(
            f"{wish.name or 'a vector'} is on by default but cannot be loaded, and nothing is answered without it: ask "
            "the operator to look at the policy and at GET /v1/artifacts",
            code="default_unavailable",
        ) from error
    return found if wish.artifact is None or wish.name is None else replace(found, name=wish.name)


def check_default(services: Services, principal: Principal) -> None:
    """Raises Unavailable where what is on by default for ``principal`` cannot be loaded."""
    default = default_bundle(services, services.policy, principal)
    for wish in default.all:
        resolve(services, wish, wish.anywhere())


def check_loads(services: Services, profile: str, param: str) -> None:
    """Raises InvalidRequest where the profile cannot be applied to the served model. One that is not there passes."""
    found = services.profiles.find(profile)
    try:
        for wish in () if found is None else bundle_of(services, found, "profile").all:
            resolve(services, wish, wish.anywhere())
    except InterlockError as error:
        raise InvalidRequest(f"the profile {profile!r} cannot be applied: {error.message}", param=param) from error


def _without_names(wish: Wish) -> Named:
    return Named(wish.setting)


def _told(settings: Iterable[Setting]) -> list[dict[str, Any]]:
    return [{"kind": one.kind, "name": one.name or "inline", "strength": one.strength} for one in settings]
