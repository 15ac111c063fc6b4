"""Request bodies, read strictly: counted while received, UTF-8, one meaning only, not too deep."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from typing import Any, NoReturn

from anyio import to_thread
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from server.api.auth import check_key
from server.api.schemas.bounds import BODY_BYTES
from server.api.validation import dotted
from server.errors import InvalidRequest, PayloadTooLarge

MAX_DEPTH = 32
MAX_MEMBERS = 1200
MAX_ITEMS = 4096
PARSED_INLINE_BYTES = 64 * 1024


class StrictRequest(Request):
    """A request whose JSON body is read by :func:`parse`."""

    _bytes: bytes = b""
    _value: Any = None

    async def read(self) -> None:
        """Receives and parses the body; raises InvalidRequest or PayloadTooLarge."""
        kind = self.headers.get("content-type", "")
        if kind.split(";")[0].strip().lower() != "application/json":
            raise InvalidRequest(
                "the body must be sent with the header 'Content-Type: application/json'", param="Content-Type"
            )
        self._bytes = b"".join([chunk async for chunk in bounded_stream(self, BODY_BYTES)])
        if len(self._bytes) > PARSED_INLINE_BYTES:
            self._value = await to_thread.run_sync(parse, self._bytes)
        else:
            self._value = parse(self._bytes)

    async def body(self) -> bytes:
        """The bytes that were read."""
        return self._bytes

    async def json(self) -> Any:
        """The value that was parsed."""
        return self._value


class JsonRoute(APIRoute):
    """A route whose body, where it takes one, is read as :class:`StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps FastAPI's own handler."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def read_and_handle(request: Request) -> Response:
            await check_key(request)  # nothing is read from those who may not ask
            strict = StrictRequest(request.scope, request.receive)
            await strict.read()
            return await handle(strict)

        return read_and_handle


async def bounded_stream(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body in chunks; raises PayloadTooLarge as soon as more than ``limit`` bytes were announced or received."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise _too_large(limit)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise _too_large(limit)
        yield chunk


def parse(body: bytes) -> Any:
    """The JSON value of ``body``.

    Raises InvalidRequest for what JSON leaves open or forbids: other encodings than UTF-8, a byte order mark, duplicate
    keys, NaN and infinities, lone surrogates, nesting deeper than ``MAX_DEPTH``. So are objects of more than
    ``MAX_MEMBERS`` fields and lists of more than ``MAX_ITEMS`` entries that are not all integers: nothing here takes
    them, and to name everything wrong in them would take seconds.
    """
    try:
        value = _load(body.decode())
        _check_surrogates(value, body)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeError:
        raise InvalidRequest("the body must be JSON in UTF-8, without lone surrogates") from None
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number is too long"
        raise InvalidRequest(f"the body is not valid JSON: {reason}", code="invalid_json") from None
    _check_size(value)
    return value


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {limit} bytes, the most this route takes")


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels")


class _NotFinite(ValueError):
    pass


def _load(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except _NotFinite:
        place = dotted(_place_of_non_finite(json.loads(text)) or ())
        message = f"{place or 'the body'}: NaN, infinite or too large: send a finite number"
        raise InvalidRequest(message, param=place or None) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_MEMBERS:
        raise InvalidRequest(f"the body has an object with more than {MAX_MEMBERS} fields")
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            field = dotted((name,))
            raise InvalidRequest(f"{field}: named twice in one object, name it once", param=field, code="duplicate_key")
        found[name] = value
    return found


def _refuse_constant(_word: str) -> NoReturn:
    raise _NotFinite


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _NotFinite
    return value


def _place_of_non_finite(value: Any) -> tuple[str | int, ...] | None:
    if isinstance(value, float) and not math.isfinite(value):
        return ()
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        if (place := _place_of_non_finite(child)) is not None:
            return (key, *place)
    return None


def _check_surrogates(value: Any, body: bytes) -> None:
    """Raises UnicodeError where an escape left half a character, which no UTF-8 text can hold."""
    if rb"\u" in body:
        json.dumps(value, ensure_ascii=False).encode()


def _check_size(value: Any) -> None:
    level = _containers([value])
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _containers(node.values() if isinstance(node, dict) else node)]
    if level:
        raise _too_deep()


def _containers(values: Collection[Any]) -> list[dict[str, Any] | list[Any]]:
    if len(values) > MAX_ITEMS and not all(type(value) is int for value in values):
        raise InvalidRequest(f"the body has a list of more than {MAX_ITEMS} entries that are not all integers")
    return [value for value in values if isinstance(value, (dict, list))]
