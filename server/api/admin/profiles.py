"""Profiles: named bundles of interventions, also served as models ``<model>:<profile>``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import Field
from typing_extensions import TypedDict

from server.api.auth import Acting, Caller, needs
from server.api.interventions import Resolver
from server.api.json_body import JsonRoute
from server.api.schemas.answers import error_responses
from server.api.schemas.bounds import Name
from server.api.schemas.interventions import ApplyIn, InterventionFields, PromptSpan, gate_of
from server.api.services import InjectedServices, Services
from server.api.wishes import Bundle, Wishes, wishes_in
from server.policy.keys import Principal
from server.policy.profiles import Profile

router = APIRouter(route_class=JsonRoute, dependencies=[needs("infer")], tags=["Access"])

ProfileId = Annotated[Name, Path(description="Name of the profile")]


class ProfileIn(InterventionFields):
    """What the profile does, as a request would say it. Empty: nothing."""

    shared: bool = Field(default=False, description="Usable by every key; takes the scope `admin`")


class ProfileOut(TypedDict):
    """A profile; ``model`` is the id it is served under."""

    object: Literal["profile"]
    name: str
    model: str
    owner: str
    shared: bool
    created_at: float
    updated_at: float


class WholeProfile(ProfileOut):
    """With what it does, and the ids of the artifacts that its names are bound to."""

    safety_switch: Any
    steering: Any
    artifacts: dict[str, str]


class ProfileList(TypedDict):
    """Profiles by name."""

    object: Literal["list"]
    data: list[ProfileOut]


@router.get("/v1/profiles", summary="List profiles", responses=error_responses(401, 403))
async def list_profiles(services: InjectedServices, principal: Caller) -> ProfileList:
    """The caller's own and those that are shared; with the scope `admin` everybody's."""
    return {"object": "list", "data": [_brief(services, one) for one in services.profiles.visible(principal)]}


@router.get("/v1/profiles/{name}", summary="Show a profile", responses=error_responses(400, 401, 403, 404))
async def show_profile(name: ProfileId, services: InjectedServices, principal: Caller) -> WholeProfile:
    """With everything it does."""
    return _whole(services, services.profiles.get(name, principal, param="name"))


@router.put(
    "/v1/profiles/{name}",
    summary="Write a profile",
    dependencies=[needs("steer")],
    responses=error_responses(400, 401, 403, 404, 409, 413),
)
def write_profile(
    name: ProfileId, body: ProfileIn, services: InjectedServices, principal: Caller, actor: Acting
) -> WholeProfile:
    """New, or in place of the earlier one of that name. Holds from the next request on.

    Names are looked up now, once: the profile stays bound to those artifacts when a name moves on. A profile that is
    somebody's default takes the scopes `admin` and `unswitch`.
    """
    if body.shared:
        principal.require("admin")
    bundle = Bundle(*wishes_in(services, body, "", "request", {}, principal))
    written = services.profiles.put(
        Profile(
            name=name,
            owner=principal.owner,
            shared=body.shared,
            content=body.model_dump(mode="json", include={"safety_switch", "steering"}, exclude_none=True),
            artifacts=_artifacts(services, principal, bundle),
            fits_every_prompt=all(_fits_every_prompt(wish.fields.apply) for wish in bundle.all),
        ),
        principal,
        actor,
    )
    return _whole(services, written)


@router.delete(
    "/v1/profiles/{name}",
    summary="Delete a profile",
    status_code=204,
    dependencies=[needs("steer")],
    responses=error_responses(400, 401, 403, 404, 409),
)
def delete_profile(name: ProfileId, services: InjectedServices, principal: Caller, actor: Acting) -> None:
    """The caller's own; others' take the scope `admin`. Refused while it is the default of the model or of a key."""
    services.profiles.delete(name, principal, actor)


def _artifacts(services: Services, principal: Principal, bundle: Bundle) -> dict[str, str]:
    """The artifacts that the names stand for now; raises what a request with these interventions would raise."""
    policy = services.policy
    policy.check_strengths([wish.setting for wish in bundle.all])
    wishes = Wishes(principal, policy, bundle.switch, bundle.steering, (), (), None, "safety_switch")
    resolver = Resolver(services, wishes)
    resolver.check()
    found: dict[str, str] = {}
    for wish in bundle.all:
        resolved, gate = resolver.find(wish), gate_of(wish.fields.gate)
        if wish.name is not None:
            found[wish.name] = resolved.digest
        if gate is not None and resolved.gate_mark is not None:
            found[gate.probe] = resolved.gate_mark.digest
    return found


def _fits_every_prompt(apply: ApplyIn | None) -> bool:
    if apply is None:
        return True
    if isinstance(apply.prompt, PromptSpan):
        return apply.match is None and apply.prompt.window is not None and apply.prompt.window[0] == 0
    return apply.match is None


def _brief(services: Services, profile: Profile) -> ProfileOut:
    return {
        "object": "profile",
        "name": profile.name,
        "model": f"{services.engine.info.name}:{profile.name}",
        "owner": profile.owner,
        "shared": profile.shared,
        "created_at": profile.created_at,
        "updated_at": profile.updated_at,
    }


def _whole(services: Services, profile: Profile) -> WholeProfile:
    return {
        **_brief(services, profile),
        "safety_switch": profile.content.get("safety_switch"),
        "steering": profile.content.get("steering"),
        "artifacts": dict(profile.artifacts),
    }
