"""Binding with messages that help, and a server that answers until it has drained."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from server.listener import DrainingServer, bind, url_of
from server.settings import ConfigurationError


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


class Served:
    """A server in a thread whose drain ends when told to."""

    def __init__(self) -> None:
        self.may_end, self.draining, self._started = threading.Event(), threading.Event(), threading.Event()
        self.socket = bind("127.0.0.1", 0)
        self.server = DrainingServer(app, started=self._started.set, drain=self._drain)
        self._thread = threading.Thread(target=self.server.run, args=([self.socket],))
        self._thread.start()
        assert self._started.wait(10)

    def _drain(self) -> None:
        self.draining.set()
        self.may_end.wait(10)

    def ended(self, within_s: float) -> bool:
        self._thread.join(within_s)
        return not self._thread.is_alive()


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.may_end.set()
    served.server.should_exit = True
    assert served.ended(10)
    served.socket.close()


def test_it_answers_while_it_drains_and_ends_afterwards(served: Served) -> None:
    url = url_of(served.socket)
    served.server.handle_exit(signal.SIGTERM, None)
    assert served.draining.wait(5)
    assert httpx.get(url).status_code == 200
    assert not served.ended(0.3)
    served.may_end.set()
    assert served.ended(10)


def test_a_second_signal_does_not_wait(served: Served) -> None:
    served.server.handle_exit(signal.SIGINT, None)
    served.server.handle_exit(signal.SIGINT, None)
    assert served.ended(10)


def test_a_port_in_use_names_the_remedy() -> None:
    with contextlib.closing(bind("127.0.0.1", 0)) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port: {port} on 127.0.0.1 is in use: choose another"):
            bind("127.0.0.1", port)


def test_an_address_of_nobody() -> None:
    with pytest.raises(ConfigurationError, match=r"^host: "):
        bind("192.0.2.1", 0)


def test_nobody_is_kept_waiting_before_the_server_starts() -> None:
    with contextlib.closing(bind("127.0.0.1", 0)) as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.getsockname()[:2], timeout=5)


def test_urls() -> None:
    with contextlib.closing(bind("0.0.0.0", 0)) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
