"""API keys: issue, list and take back. The secret of a key is in the answer that issues it and nowhere else."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from fastapi import APIRouter, Path
from pydantic import Field, model_validator
from typing_extensions import TypedDict

from server.api.auth import Acting, Caller, needs
from server.api.interventions import check_loads
from server.api.json_body import JsonRoute
from server.api.schemas.answers import error_responses
from server.api.schemas.bounds import Id, StrictModel, misused
from server.api.services import InjectedServices
from server.policy.document import Limits, ProfileName
from server.policy.key_store import ApiKey, NewKey
from server.policy.keys import EVERY_SCOPE, Scope

router = APIRouter(route_class=JsonRoute, dependencies=[needs("admin")], tags=["Access"])

_TEN_YEARS_S = 10 * 366 * 86400


class KeyIn(StrictModel):
    """A key to be issued. It may not have a scope that the issuing key lacks."""

    name: ProfileName = Field(description="What to call it; need not be unique")
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(EVERY_SCOPE))]
    owner: ProfileName | None = Field(
        default=None,
        description="Whose jobs, artifacts and profiles it sees: the owner of an earlier key, to replace that one. "
        "null: its own",
    )
    expires_in_s: Annotated[int, Field(ge=1, le=_TEN_YEARS_S)] | None = None
    profile: ProfileName | None = Field(default=None, description="Its default, in place of the model's")
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _each_scope_once(self) -> Self:
        if len(set(self.scopes)) < len(self.scopes):
            raise misused("scopes", "names a scope twice: list each scope once")
        return self


class KeyOut(TypedDict):
    """An issued key; times in seconds since the epoch, ``last_used_at`` to the minute."""

    id: str
    object: Literal["api_key"]
    name: str
    owner: str
    scopes: list[Scope]
    profile: str | None
    limits: Limits
    created_at: float
    expires_at: float | None
    last_used_at: float | None


class NewKeyOut(KeyOut):
    """A key that was just issued, with its secret."""

    secret: str


class KeyList(TypedDict):
    """Issued keys, newest first."""

    object: Literal["list"]
    data: list[KeyOut]


@router.get("/v1/keys", summary="List API keys", responses=error_responses(401, 403))
def list_keys(services: InjectedServices) -> KeyList:
    """All issued keys, expired ones among them; the one given at start is not one of them."""
    return {"object": "list", "data": [_key(key) for key in services.keys.list()]}


@router.post(
    "/v1/keys", summary="Issue an API key", status_code=201, responses=error_responses(400, 401, 403, 404, 409, 413)
)
def create_key(body: KeyIn, services: InjectedServices, principal: Caller, actor: Acting) -> NewKeyOut:
    """`secret` is shown this once. Works from the next request on."""
    if body.profile is not None:
        check_loads(services, body.profile, "profile")
    new = NewKey(
        name=body.name,
        scopes=frozenset(body.scopes),
        owner=body.owner,
        expires_at=None if body.expires_in_s is None else services.wall_clock() + body.expires_in_s,
        profile=body.profile,
        limits=body.limits,
    )
    key, secret = services.keys.create(new, principal, actor)
    return {**_key(key), "secret": secret}


@router.delete(
    "/v1/keys/{key_id}", summary="Take an API key back", status_code=204, responses=error_responses(400, 401, 403, 404)
)
def delete_key(key_id: Annotated[Id, Path()], services: InjectedServices, actor: Acting) -> None:
    """Refused from the next request on; what runs already runs on."""
    services.keys.delete(key_id, actor)


def _key(key: ApiKey) -> KeyOut:
    return {
        "id": key.id,
        "object": "api_key",
        "name": key.name,
        "owner": key.owner,
        "scopes": sorted(key.scopes),
        "profile": key.profile,
        "limits": key.limits,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
    }
