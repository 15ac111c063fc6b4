"""Who is calling, and may they: router dependencies that deny by default."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.params import Security as SecurityParameter
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from server.api.services import InjectedServices
from server.policy.keys import Principal, Scope

_bearer = HTTPBearer(auto_error=False, description="An API key; none is asked for where the server has no keys.")


async def authenticate(
    services: InjectedServices,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    needed: SecurityScopes,
) -> Principal:
    """The caller, who has every scope the route and its routers need; raises NotAuthenticated or NotPermitted."""
    principal = services.keys.authenticate(None if credentials is None else credentials.credentials)
    for scope in needed.scopes:
        principal.require(scope)  # type: ignore[arg-type]  # FastAPI types scopes as plain strings
    return principal


async def check_key(request: Request) -> None:
    """Raises NotAuthenticated, for what comes before a route's dependencies."""
    credentials = await _bearer(request)
    request.app.state.services.keys.authenticate(None if credentials is None else credentials.credentials)


def needs(scope: Scope) -> SecurityParameter:
    """A dependency for a router or route whose callers must have ``scope``."""
    parameter = Security(authenticate, scopes=[scope])
    assert isinstance(parameter, SecurityParameter)
    return parameter


Caller = Annotated[Principal, Security(authenticate)]
