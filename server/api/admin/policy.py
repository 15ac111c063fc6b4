"""The policy: read it, and replace it as a whole if nobody else has meanwhile."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Response
from pydantic import Field
from typing_extensions import TypedDict

from server.api.auth import Acting, Caller, needs
from server.api.interventions import check_loads
from server.api.json_body import JsonRoute
from server.api.schemas.answers import error_responses
from server.api.schemas.bounds import QueryModel, StrictModel
from server.api.services import InjectedServices
from server.errors import InvalidRequest
from server.policy.document import PolicyDocument
from server.policy.policies import PolicyVersion

router = APIRouter(route_class=JsonRoute, dependencies=[needs("admin")], tags=["Access"])

_MAX_VERSION = 2**31 - 1
Version = Annotated[int, Field(ge=0, le=_MAX_VERSION)]


class PolicyIn(StrictModel):
    """The whole policy, and the version it was made from unless `If-Match` says that."""

    document: PolicyDocument
    version: Version | None = None


class WantedVersion(QueryModel):
    """Which version to show; the newest unless one is named."""

    version: Version | None = None


class PolicyOut(TypedDict):
    """A version of the policy; 0 is what holds before one was written. Times in seconds since the epoch."""

    object: Literal["policy"]
    version: int
    created_at: float | None
    created_by: str | None
    document: PolicyDocument


@router.get("/v1/policy", summary="Show the policy", responses=error_responses(400, 401, 403, 404))
def show_policy(services: InjectedServices, response: Response, wanted: Annotated[WantedVersion, Query()]) -> PolicyOut:
    """The policy that holds, or with `version` an earlier one, such as a receipt names. `ETag` is the version."""
    found = services.policies.get(wanted.version)
    response.headers["ETag"] = f'"{found.version}"'
    return _policy(found)


@router.put("/v1/policy", summary="Replace the policy", responses=error_responses(400, 401, 403, 404, 409, 413))
def replace_policy(
    body: PolicyIn,
    services: InjectedServices,
    principal: Caller,
    actor: Acting,
    response: Response,
    if_match: Annotated[str | None, Header(max_length=32, description="The version that was read, as in ETag")] = None,
) -> PolicyOut:
    """Holds from the next request on. Takes the scope `unswitch` too, because a policy can take a default away."""
    expected = _expected(body.version, if_match)
    profile = body.document.default_profiles.get(services.engine.info.name)
    if profile is not None:
        check_loads(services, profile, "document.default_profiles")
    written = services.policies.replace(body.document, expected, principal, actor)
    response.headers["ETag"] = f'"{written.version}"'
    return _policy(written)


def _expected(version: int | None, if_match: str | None) -> int:
    if if_match is None:
        if version is None:
            raise InvalidRequest("say which version you have read: here, or with If-Match", param="version")
        return version
    tag = if_match.strip().removeprefix("W/").strip('"')
    if not (tag.isascii() and tag.isdecimal()) or int(tag) > _MAX_VERSION:
        raise InvalidRequest('If-Match must be the version that was read, such as "3"', param="If-Match")
    if version not in (None, int(tag)):
        raise InvalidRequest("If-Match and version differ: send one of them", param="version")
    return int(tag)


def _policy(found: PolicyVersion) -> PolicyOut:
    return {
        "object": "policy",
        "version": found.version,
        "created_at": found.created_at,
        "created_by": found.created_by,
        "document": found.document,
    }
