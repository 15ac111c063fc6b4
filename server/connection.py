"""What one connection may do: a request has to arrive in time, and whatever is not HTTP is refused like any request."""

from __future__ import annotations

import asyncio
import json
from secrets import token_hex

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.api.errors import error_body, status_of
from server.errors import InvalidRequest, RequestError, RequestTimeout

RECEIVE_S = 30.0
"""Seconds from a connection's or request's first byte until the request has arrived, bodies aside."""
BODY_BYTES_PER_S = 16 * 1024
"""The pace a body may not fall below: every so many bytes give the request a second more."""

_log = structlog.get_logger(__name__)


class BoundedConnection(H11Protocol):
    """uvicorn's connection, which would wait for ever for the rest of a request, with a clock.

    The clock runs while the client has something to send: from the connection on until a request is there, and from
    the first byte of each further one. What is sent after an answer (the rest of a body nobody wanted) buys no time.
    """

    _clock: asyncio.TimerHandle | None = None
    _due = 0.0
    _heard = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Starts the clock."""
        super().connection_made(transport)
        self._start_clock()

    def data_received(self, data: bytes) -> None:
        """Reads on; starts, extends or stops the clock."""
        self._heard = True
        super().data_received(data)
        if not self._is_receiving():
            self._stop_clock()
        elif self._clock is None:
            self._start_clock()
        elif self._is_receiving_body():
            self._due += len(data) / BODY_BYTES_PER_S

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words name neither place nor remedy
        """Called by uvicorn for bytes that are not HTTP."""
        self._refuse(InvalidRequest("this is not HTTP/1.1, or its head is too large", code="invalid_http"))

    def _is_receiving(self) -> bool:
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _is_receiving_body(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_clock(self) -> None:
        self._due = self.loop.time() + RECEIVE_S
        self._clock = self.loop.call_at(self._due, self._on_clock)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _on_clock(self) -> None:
        if self.loop.time() < self._due:
            self._clock = self.loop.call_at(self._due, self._on_clock)
        elif self._heard:
            self._refuse(RequestTimeout("the request did not arrive in time: send it faster, or in smaller parts"))
        else:
            self.transport.close()

    def _refuse(self, error: RequestError) -> None:
        """Answers with ``error`` where no answer has begun, and closes."""
        status, request_id = status_of(error)[0], f"req_{token_hex(12)}"
        _log.warning("connection_refused", request_id=request_id, code=error.code)
        if not self.transport.is_closing() and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error_body(error, request_id)).encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("X-Request-Id", request_id),
                ("Connection", "close"),
            ]
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
