"""A whole server under more clients than it has places, clients that hang up or do not read, and too little memory."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from server.api.services import Services
from server.serve import running_services
from server.settings import read_settings
from tests.server.listening import listening, shared_client

BATCH, WAITING = 8, 128
TOKENS = 2000
SMALL_BUFFER = 4096


@pytest.fixture(scope="module")
def services(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("data")
    given = {"model": str(model_folder), "data_dir": folder, "device": "cpu", "dtype": "float32", "threads": 1}
    given |= {"max_batch": BATCH, "max_waiting": WAITING}
    with running_services(read_settings(given, {}), threading.Event()) as services:
        yield services


@pytest.fixture(scope="module")
def url(services: Services) -> Iterator[str]:
    with listening(services) as url:
        yield url


@pytest.fixture(scope="module")
def web(url: str) -> Iterator[httpx.Client]:
    with shared_client(url) as client:
        yield client


class Forwards:
    """The engine's forwards: none until ``opened``, counted, and one with ``fails_at`` rows runs out of memory.

    ``lost`` of these are prompts.
    """

    def __init__(self, forward: Callable[[Any], Any]) -> None:
        self.opened = threading.Event()
        self.count = 0
        self.fails_at: int | None = None
        self.lost = 0
        self._forward = forward

    def __call__(self, batch: Any) -> Any:
        assert self.opened.wait(60)
        self.count += 1
        if len(batch.rows) == self.fails_at:
            self.fails_at = None
            self.lost = sum(row.state != "decode" for row in batch.rows)
            raise torch.OutOfMemoryError("no memory")
        return self._forward(batch)


@pytest.fixture
def forwards(services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forwards]:
    forwards = Forwards(services.engine._runner.forward)
    monkeypatch.setattr(services.engine._runner, "forward", forwards)
    yield forwards
    forwards.opened.set()


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "Hello", "max_tokens": 4, "temperature": 0, "ignore_eos": True} | fields


def ask(web: httpx.Client, **fields: Any) -> httpx.Response:
    return web.post("/v1/completions", json=body(**fields))


def connect(url: str, **fields: Any) -> socket.socket:
    """A client that has asked and not read; hardly anything of its answer fits into its buffer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", httpx.URL(url).port))
    content = json.dumps(body(**fields)).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 60 seconds"
        time.sleep(0.01)


def assert_free(services: Services) -> None:
    eventually(lambda: not services.engine.generations())
    eventually(lambda: services.engine.stats().kv_promised == 0)
    assert services.engine._runner.meters.in_use == 0


def test_three_hundred_clients_get_an_answer_each(services, web, forwards):
    """Nothing is computed until 164 were refused, so 8 + 128 hold the places and no other count is right."""
    surplus = 300 - BATCH - WAITING
    refusals = threading.Semaphore(0)

    def client(_number: int) -> httpx.Response:
        response = ask(web)
        if not response.is_success:
            refusals.release()
        return response

    with ThreadPoolExecutor(300) as pool:
        answers = [pool.submit(client, number) for number in range(300)]
        refused = sum(refusals.acquire(timeout=30) for _ in range(surplus))
        forwards.opened.set()
        responses = [answer.result() for answer in answers]
    assert Counter(response.status_code for response in responses) == {200: BATCH + WAITING, 429: surplus}
    assert refused == surplus
    assert all(int(response.headers["retry-after"]) >= 1 for response in responses if not response.is_success)
    assert {response.json()["usage"]["completion_tokens"] for response in responses if response.is_success} == {4}
    assert_free(services)


def test_sixty_four_clients_that_hang_up_make_room(services, url, web, forwards):
    """What they asked for takes 16,000 forwards; the next client's answer comes before half of them."""
    connections = [connect(url, max_tokens=TOKENS, stream=number % 2 == 0) for number in range(64)]
    eventually(lambda: len(services.engine.generations()) == 64)
    forwards.opened.set()
    eventually(lambda: forwards.count > 10)
    for connection in connections:
        connection.close()
    assert ask(web).status_code == 200
    assert_free(services)
    assert forwards.count < 64 * TOKENS / BATCH / 2


def test_clients_that_do_not_read_hold_nobody_up(services, url, web, forwards):
    """Their answers are written to the end, others get theirs meanwhile, and nothing of what is read late is lost."""
    clients = BATCH + 4
    slow = [connect(url, max_tokens=600, logprobs=20, stream=True) for _ in range(clients)]
    eventually(lambda: len(services.engine.generations()) == clients)
    forwards.opened.set()
    assert ask(web).status_code == 200
    assert_free(services)
    for connection in slow:
        answer = b"".join(iter(lambda connection=connection: connection.recv(1 << 16), b""))
        connection.close()
        assert len(answer) > 50 * SMALL_BUFFER
        assert answer.count(b"data: ") >= 600
        assert b"data: [DONE]" in answer


def test_out_of_memory_is_told_and_the_rest_is_served(services, web, forwards, monkeypatch):
    monkeypatch.setattr(services.engine._scheduler, "max_batch", BATCH)
    forwards.fails_at = BATCH
    with ThreadPoolExecutor(2 * BATCH) as pool:
        answers = [pool.submit(ask, web, max_tokens=100) for _ in range(2 * BATCH)]
        eventually(lambda: len(services.engine.generations()) == 2 * BATCH)
        forwards.opened.set()
        responses = [answer.result() for answer in answers]
    failed = [response for response in responses if not response.is_success]
    assert 1 <= forwards.lost <= BATCH
    counted = Counter(response.status_code for response in responses)
    assert counted == {200: 2 * BATCH - forwards.lost, 503: forwards.lost}
    assert {response.json()["error"]["code"] for response in failed} == {"out_of_memory"}
    assert all(int(response.headers["retry-after"]) >= 1 for response in failed)
    assert services.engine._scheduler.max_batch == BATCH // 2
    assert ask(web).status_code == 200
    assert_free(services)
