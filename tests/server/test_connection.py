"""Clients that are slow, silent or never done."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request

from server import connection
from server.api import errors
from server.api.middleware import RequestId
from tests.server.listening import serving

SHORT_S = 0.5
POST = b"POST /take HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
STARTS = [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX: ", POST]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = FastAPI()
    app.add_middleware(RequestId, new_id=lambda: "0")
    errors.install(app)

    @app.post("/take")
    async def take(request: Request) -> int:
        return len(await request.body())

    @app.post("/ignore")
    async def ignore() -> None:
        return None

    with pytest.MonkeyPatch.context() as patch, serving(app) as address:
        patch.setattr(connection, "RECEIVE_S", SHORT_S)
        yield address


@pytest.fixture
def client(url: str) -> Iterator[socket.socket]:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        yield client


def seconds_until_hung_up(client: socket.socket, start: bytes, every: bytes) -> float:
    """For a client that sends ``start`` and then ``every`` for ever.

    The server counts from the connection, which the fixture has opened a moment before.
    """
    began = time.monotonic()
    client.sendall(start)
    client.settimeout(0.05)
    with contextlib.suppress(OSError):
        while time.monotonic() < began + 30:
            client.sendall(every)
            with contextlib.suppress(TimeoutError):
                if not client.recv(4096):
                    break
    return time.monotonic() - began


@pytest.mark.parametrize("start", STARTS)
def test_a_request_that_stops_half_way_is_given_up(client: socket.socket, start: bytes) -> None:
    client.sendall(start)
    answer = b"".join(iter(lambda: client.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert head.startswith(b"HTTP/1.1 408 ")
    assert error["code"] == "request_timeout"
    assert f"X-Request-Id: {error['request_id']}".encode() in head


@pytest.mark.parametrize("start", STARTS)
def test_a_request_that_trickles_in_is_given_up(client: socket.socket, start: bytes) -> None:
    assert SHORT_S / 2 < seconds_until_hung_up(client, start, b"x") < 30


def test_a_silent_connection_is_closed_without_an_answer(client: socket.socket) -> None:
    assert client.recv(1) == b""


def test_the_rest_of_an_unwanted_body_is_not_awaited(client: socket.socket) -> None:
    start = b"POST /ignore HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"
    assert SHORT_S / 2 < seconds_until_hung_up(client, start, b"x" * 10_000) < 30


def test_a_large_body_has_more_time(client: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_BYTES_PER_S", 1)
    client.sendall(POST)
    for _ in range(10):
        client.sendall(b"x" * 10)
        time.sleep(SHORT_S / 5)
    assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_between_requests_there_is_time(client: socket.socket) -> None:
    request = b"POST /take HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
    for _ in range(2):
        client.sendall(request)
        answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200 ")
        while not answer.endswith(b"\r\n\r\n1"):  # the body may come behind its head
            answer += client.recv(4096)
        time.sleep(2 * SHORT_S)
