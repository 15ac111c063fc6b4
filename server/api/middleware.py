"""Pure ASGI middleware: a request id for everything, heads with one meaning, no changes by foreign web pages."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import error_body, status_of
from server.errors import HeadTooLarge, InvalidRequest, NotPermitted, RequestError

HEAD_BYTES = 64 * 1024
_FIELD_OVERHEAD = len(": \r\n")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class RequestId:
    """Gives every request an id in ``request.state.request_id`` and every answer ``X-Request-Id``.

    A route may replace the id before it answers, as generations do with their own. ``new_id`` gives unguessable hex.
    """

    def __init__(self, app: ASGIApp, new_id: Callable[[], str]) -> None:
        self._app = app
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = f"req_{self._new_id()}"

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = state["request_id"]
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, send_with_id)


class OneMeaning:
    """Refuses heads of more than ``HEAD_BYTES``, and those that two servers might read differently.

    Behind a proxy that goes by ``Content-Length``, a request that also says ``Transfer-Encoding`` could hide another in
    its body (RFC 9112, section 6.1). The connection is closed, because where the next request begins is not known.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        error = _problem_of_head(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
            return
        body = error_body(error, scope["state"]["request_id"])
        response = JSONResponse(body, status_of(error)[0], headers={"Connection": "close"})
        await response(scope, receive, send)


def _problem_of_head(scope: Scope) -> RequestError | None:
    headers = scope["headers"]
    fields = sum(len(name) + len(value) + _FIELD_OVERHEAD for name, value in headers)
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) + fields > HEAD_BYTES:
        return HeadTooLarge(f"path and headers are larger than {HEAD_BYTES} bytes together")
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
        return InvalidRequest(
            "Content-Length and Transfer-Encoding exclude each other: send one of them", param="Transfer-Encoding"
        )
    return None


class SameOrigin:
    """Refuses requests that change something and come from a web page of another origin.

    Browsers always send ``Origin`` with such requests; other clients send none. On a server without keys
    (``is_open``) the page must in addition be served from this machine by address or as ``localhost``: a name that
    a foreign page owns may resolve to the loopback address.
    """

    def __init__(self, app: ASGIApp, is_open: Callable[[], bool]) -> None:
        self._app = app
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http" or scope["method"] in _SAFE_METHODS or self._allowed(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        error = NotPermitted("this request comes from a web page of another origin", code="foreign_origin")
        response = JSONResponse(error_body(error, scope["state"]["request_id"]), status_of(error)[0])
        await response(scope, receive, send)

    def _allowed(self, headers: Headers) -> bool:
        origins = headers.getlist("origin")
        if not origins:
            return True
        hosts = headers.getlist("host")
        try:
            origin = urlsplit(origins[0])
            name = origin.hostname
        except ValueError:
            return False
        if len(origins) > 1 or len(hosts) != 1 or name is None or origin.netloc.lower() != hosts[0].lower():
            return False
        return not self._is_open() or _is_address(name)


def _is_address(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
