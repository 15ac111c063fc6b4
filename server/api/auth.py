"""Who is calling, and may they: router dependencies that deny by default."""

from __future__ import annotations

from typing import Annotated

import structlog
from anyio import to_thread
from fastapi import Depends, Request, Security
from fastapi.params import Security as SecurityParameter
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from sqlalchemy.exc import SQLAlchemyError

from server.api.services import InjectedServices, Services
from server.policy.audit import Actor
from server.policy.keys import Principal, Scope

_bearer = HTTPBearer(auto_error=False, description="An API key; none is asked for where the server has no keys.")

_log = structlog.get_logger(__name__)


async def authenticate(
    request: Request,
    services: InjectedServices,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    needed: SecurityScopes,
) -> Principal:
    """The caller, who has every scope the route and its routers need; raises NotAuthenticated or NotPermitted."""
    principal = services.keys.authenticate(None if credentials is None else credentials.credentials)
    request.state.principal = principal  # for the audit of a refusal, wherever it is raised
    if services.keys.is_due(principal):
        await to_thread.run_sync(_note_use, services, principal)
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


async def _acting(request: Request, principal: Caller) -> Actor:
    return Actor(principal.name, request.state.request_id)


Acting = Annotated[Actor, Depends(_acting)]
"""The caller as the audit log names them."""


def _note_use(services: Services, principal: Principal) -> None:
    """A time of last use that cannot be written stops nobody; what has to be written is in the audit log."""
    try:
        services.keys.note_use(principal)
    except SQLAlchemyError as error:
        _log.warning("last_use_not_written", key=principal.key_id, error=type(error).__name__)
