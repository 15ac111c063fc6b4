"""Listening and leaving: a socket bound before anything is loaded, and a server that drains before it closes."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from server.api.middleware import HEAD_BYTES
from server.connection import BoundedConnection
from server.settings import ConfigurationError

_UNFINISHED_BYTES = 2 * HEAD_BYTES
"""What is kept of a head or of a chunk's first line until it ends; finished heads are counted by the application."""
_KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections (httpx: 5 s), so that none is closed just as it is used again."""
_BACKLOG = 2048
_CLOSE_CONNECTIONS_S = 3


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen: until the model is loaded, connections are refused at once.

    Raises ConfigurationError where the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigurationError(f"host: {host} is no address of this machine: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigurationError(_bind_failure(host, port, error)) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL a client on this machine reaches the socket at."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not bound to
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """Serves until a signal comes, then answers on while ``drain`` runs in a thread, and only then closes.

    A second signal closes at once. ``started`` is called when requests are answered. After a drain the process goes on
    to its end as usual, so that its exit code is 0; uvicorn would raise the signal again.
    """

    def __init__(self, app: ASGIApp, *, started: Callable[[], None], drain: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedConnection,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=_UNFINISHED_BYTES,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_CLOSE_CONNECTIONS_S,
                backlog=_BACKLOG,
            )
        )
        self._on_started = started
        self._drain = drain
        self._draining = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts as uvicorn does, then tells."""
        await super().startup(sockets)
        if not self.should_exit:
            self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Called by a signal, between two instructions of the main thread: starts the drain and returns."""
        if self._draining:
            self.should_exit = True
            self.force_exit = True
            return
        self._draining = True
        threading.Thread(target=self._drain_and_exit, name="drain", daemon=True).start()

    def _drain_and_exit(self) -> None:
        try:
            self._drain()
        finally:
            self.should_exit = True


def _bind_failure(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port: {port} on {host} is in use: choose another with --port, or 0 for a free one"
    if error.errno == errno.EACCES:
        return f"port: {port} needs privileges: choose one above 1023 with --port"
    return f"host: cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}"
