"""Errors as HTTP: one table from class to status, and one OpenAI-shaped body for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from mappers import errors as mapper_errors
from server import errors
from server.api.validation import invalid_request
from server.policy.audit import Actor

INVALID = "invalid_request_error"

STATUS: Mapping[type[mapper_errors.InterlockError], tuple[int, str]] = {
    mapper_errors.InterlockError: (500, "server_error"),
    mapper_errors.UnsupportedArchitecture: (400, INVALID),
    mapper_errors.ArtifactError: (400, INVALID),
    mapper_errors.ArtifactCorrupt: (400, INVALID),
    mapper_errors.ArtifactMismatch: (400, INVALID),
    mapper_errors.DataError: (400, INVALID),
    mapper_errors.TrainingError: (500, "server_error"),
    mapper_errors.OutOfMemory: (503, "unavailable_error"),
    errors.RequestError: (400, INVALID),
    errors.InvalidRequest: (400, INVALID),
    errors.ContextLengthExceeded: (400, INVALID),
    errors.NotAuthenticated: (401, "authentication_error"),
    errors.NotPermitted: (403, "permission_error"),
    errors.NotFound: (404, "not_found_error"),
    errors.Conflict: (409, "conflict_error"),
    errors.PayloadTooLarge: (413, INVALID),
    errors.HeadTooLarge: (431, INVALID),
    errors.RequestTimeout: (408, INVALID),
    errors.Overloaded: (429, "overloaded_error"),
    errors.Unavailable: (503, "unavailable_error"),
    errors.GenerationFailed: (500, "generation_error"),
}
_GENERATION_STATUS = {"out_of_memory": 503, "shutdown": 503}
_GENERATION_RETRY_S = 5
_PROTOCOL: Mapping[int, tuple[str, str]] = {
    404: ("not_found", "there is no such route: see /docs"),
    405: ("method_not_allowed", "this route does not take this method: see /docs"),
}
_log = structlog.get_logger(__name__)


def status_of(error: mapper_errors.InterlockError) -> tuple[int, str]:
    """HTTP status and error type, by the nearest class in the table."""
    if isinstance(error, errors.GenerationFailed) and error.code in _GENERATION_STATUS:
        return _GENERATION_STATUS[error.code], "unavailable_error"
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def error_body(error: mapper_errors.InterlockError, request_id: str) -> dict[str, Any]:
    """The body ``{"error": {...}}``, also used for errors inside a stream."""
    return _body(
        error.message,
        kind=status_of(error)[1],
        param=getattr(error, "param", None),
        code=getattr(error, "code", None),
        request_id=request_id,
    )


def install(app: FastAPI) -> None:
    """Registers a handler for everything that may be raised below a route."""
    app.add_exception_handler(mapper_errors.InterlockError, _on_interlock_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)


def _body(message: str, *, kind: str, param: str | None, code: str | None, request_id: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code, "request_id": request_id}}


def _request_id(request: Request) -> str:
    return str(request.state.request_id)


async def _on_interlock_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, mapper_errors.InterlockError)
    told = await _audited(request, error) if isinstance(error, errors.NotPermitted) else error
    return JSONResponse(error_body(told, _request_id(request)), status_of(told)[0], headers=_headers(told))


async def _audited(request: Request, error: errors.NotPermitted) -> errors.RequestError:
    """``error`` once it is written down, or the error of writing. Names the route, not the path: that may hold text."""
    principal = getattr(request.state, "principal", None)
    if principal is None:
        return error
    route = getattr(request.scope.get("route"), "path", "")
    detail = {"rule": error.code, "param": error.param, "method": request.method, "route": route}
    try:
        await request.app.state.services.audit.write_down(
            "refused", Actor(principal.name, _request_id(request)), detail
        )
    except errors.Unavailable as unavailable:
        return unavailable
    return error


def _headers(error: mapper_errors.InterlockError) -> dict[str, str]:
    match error:
        case errors.NotAuthenticated():
            return {"WWW-Authenticate": "Bearer"}
        case errors.Overloaded() | errors.Unavailable():
            return {"Retry-After": str(error.retry_after_s)}
        case errors.GenerationFailed(code="non_finite" | "intervention_failed"):
            # The same request would fail in the same way; openai's clients honour this.
            return {"x-should-retry": "false"}
        case errors.GenerationFailed() if error.code in _GENERATION_STATUS:
            return {"Retry-After": str(_GENERATION_RETRY_S)}
        case _:
            return {}


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _on_interlock_error(request, invalid_request(error.errors(), error.body))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, message = _PROTOCOL.get(error.status_code, ("invalid_request", "the request could not be read"))
    body = _body(message, kind=INVALID, param=None, code=code, request_id=_request_id(request))
    return JSONResponse(body, error.status_code, headers=error.headers)


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    """Nobody reads this answer; it only ends the request without a traceback in the log."""
    return Response(status_code=400)


async def _on_bug(request: Request, error: Exception) -> Response:
    request_id = _request_id(request)
    _log.error("unhandled error", request_id=request_id, error=type(error).__name__)
    message = f"the server failed to handle this request; quote the request id {request_id} to the operator"
    body = _body(message, kind="server_error", param=None, code="internal_error", request_id=request_id)
    # Starlette sends this from outside every middleware, so the id is not added there.
    return JSONResponse(body, 500, headers={"X-Request-Id": request_id})
