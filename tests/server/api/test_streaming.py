"""Streams and hang-ups over a raw ASGI connection, so that the test decides when the client is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI

from server.types import Failed, TokensGenerated
from tests.server.api.conftest import COMPLETION
from tests.server.api.fakes import FakeEngine, events_of

PATHS = ("/v1/completions", "/v1/chat/completions")
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


class Connection:
    """One request: ``receive`` waits for ``hang_up``; ``sent`` collects what the application sends."""

    def __init__(self, app: FastAPI, path: str, body: dict[str, Any]) -> None:
        self.sent: list[dict[str, Any]] = []
        self._gone = asyncio.Event()
        self._bodies = [json.dumps(body).encode()]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "http_version": "1.1",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    def hang_up(self) -> None:
        self._gone.set()

    async def _receive(self) -> dict[str, Any]:
        if self._bodies:
            return {"type": "http.request", "body": self._bodies.pop(), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)


def body_for(path: str) -> dict[str, Any]:
    return CHAT if "chat" in path else COMPLETION


@pytest.fixture
def held(engine: FakeEngine) -> FakeEngine:
    engine.hold = True
    return engine


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_hang_up_stops_every_row(build, held, path, stream):
    connection = Connection(build(), path, body_for(path) | {"n": 3, "stream": stream})
    await connection.until(lambda: len(held.running) == 3)
    if stream:
        await connection.until(lambda: len(connection.sent) > 0)
    connection.hang_up()
    await asyncio.wait_for(connection.task, 10)
    assert not held.running
    assert len(held.cancelled) == 3


async def test_a_hang_up_in_the_middle_of_a_stream_stops_it(build, held):
    connection = Connection(build(), PATHS[0], COMPLETION | {"stream": True})
    await connection.until(lambda: bool(held.sinks))
    (row,) = held.sinks
    held.sinks[row](TokensGenerated("a", (97,)))
    await connection.until(lambda: '"text":"a"' in connection.text)
    connection.hang_up()
    await asyncio.wait_for(connection.task, 10)
    assert held.cancelled == [row]
    assert "[DONE]" not in connection.text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_row_that_finished_is_not_cancelled(build, held, stream):
    connection = Connection(build(), PATHS[0], COMPLETION | {"stream": stream})
    await connection.until(lambda: bool(held.sinks))
    held.finish(next(iter(held.sinks)))
    await asyncio.wait_for(connection.task, 10)
    assert held.cancelled == []
    assert "abcd" in connection.text or stream


@pytest.mark.parametrize(("code", "status"), [("non_finite", 500), ("out_of_memory", 503)])
async def test_a_failed_row_ends_the_request_and_its_siblings(build, held, code, status):
    connection = Connection(build(), PATHS[0], COMPLETION | {"n": 2})
    await connection.until(lambda: len(held.sinks) == 2)
    first, second = held.sinks
    held.running.pop(first)
    held.sinks[first](Failed(code, "the output is not finite"))
    await asyncio.wait_for(connection.task, 10)
    assert connection.sent[0]["status"] == status
    assert json.loads(connection.text)["error"]["code"] == code
    assert held.cancelled == [second]


async def test_a_failure_inside_a_stream_is_an_error_event(build, held):
    connection = Connection(build(), PATHS[1], CHAT | {"stream": True})
    await connection.until(lambda: bool(held.sinks))
    (row,) = held.sinks
    held.running.pop(row)
    held.sinks[row](TokensGenerated("a", (97,)))
    held.sinks[row](Failed("shutdown", "the server is shutting down"))
    await asyncio.wait_for(connection.task, 10)
    *_, error, done, _ = connection.text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"] == {
        "message": "the server is shutting down",
        "type": "unavailable_error",
        "param": None,
        "code": "shutdown",
        "request_id": row,
    }
    assert done == "data: [DONE]"


async def test_the_id_of_a_stream_is_known_before_its_first_token(build, held):
    connection = Connection(build(), PATHS[0], COMPLETION | {"stream": True})
    await connection.until(lambda: len(connection.sent) > 0)
    headers = dict(connection.sent[0]["headers"])
    assert headers[b"x-request-id"].decode() in held.running
    connection.hang_up()
    await asyncio.wait_for(connection.task, 10)


async def test_events_of_several_rows_may_interleave(build, held):
    connection = Connection(build(), PATHS[0], COMPLETION | {"prompt": ["x", "y"], "stream": True, "max_tokens": 2})
    await connection.until(lambda: len(held.sinks) == 2)
    rows = [(held.sinks[row], events_of(held.running.pop(row))) for row in list(held.running)]
    for step in range(3):
        for sink, events in reversed(rows):
            sink(events[step])
    await asyncio.wait_for(connection.task, 10)
    chunks = [json.loads(line.removeprefix("data: ")) for line in connection.text.split("\n\n")[:-2]]
    indices = [chunk["choices"][0]["index"] for chunk in chunks]
    assert indices == [1, 0, 1, 0, 1, 0]
    assert ["interlock" in chunk for chunk in chunks] == [False] * 5 + [True]


async def test_the_event_loop_stays_free_while_a_request_waits(build, held):
    app = build()
    waiting = Connection(app, PATHS[0], COMPLETION)
    await waiting.until(lambda: bool(held.sinks))
    other = Connection(app, "/tokenize", {"prompt": "abc"})
    await asyncio.wait_for(other.task, 10)
    assert json.loads(other.text)["count"] == 3
    waiting.hang_up()
    await asyncio.wait_for(waiting.task, 10)
