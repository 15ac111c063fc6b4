"""What a client writes reaches the model and the client, and nothing that operators read."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from starlette.testclient import TestClient

from server.api.app import create_app
from server.logs import configure_logging
from tests.server.api.conftest import MakeServices
from tests.server.api.fakes import FakeEngine

SECRET = "xyzzy plugh"
CHAT = {"model": "fake", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 4}
COMPLETION = {"model": "fake", "prompt": SECRET, "max_tokens": 4}
COMPARED = COMPLETION | {"settings": [{"label": "off"}, {"label": "on", "safety_switch": "safe"}]}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT | {"safety_switch": "safe"}),
    "streamed chat": ("/v1/chat/completions", CHAT | {"stream": True}),
    "completion": ("/v1/completions", COMPLETION | {"n": 2, "logprobs": 2, "safety_switch": False}),
    "streamed completion": ("/v1/completions", COMPLETION | {"stream": True}),
    "compared": ("/v1/compare", COMPARED),
    "tokenised": ("/tokenize", {"model": "fake", "prompt": SECRET}),
    "stop that is no text": ("/v1/completions", COMPLETION | {"stop": [1, SECRET]}),
    "unknown field": ("/v1/chat/completions", CHAT | {SECRET: SECRET}),
    "unknown switch": ("/v1/completions", COMPLETION | {"safety_switch": "nobody", "user": SECRET}),
    "no prompt": ("/v1/completions", {"model": "fake", "prompt": {"a": SECRET}}),
    "no model": ("/v1/completions", COMPLETION | {"model": SECRET}),
}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """``written()``: all that this process has logged, at the most talkative level."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging("debug")
    yield stream.getvalue
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def client(written: Callable[[], str], make_services: MakeServices) -> Iterator[TestClient]:
    # After the log is set up: loggers keep the stream that they were made with.
    with TestClient(create_app(make_services()), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("failing", [False, True], ids=["answered", "failing"])
@pytest.mark.parametrize("name", REQUESTS)
def test_what_is_written_is_kept_out_of_logs_metrics_and_audit(
    client: TestClient, engine: FakeEngine, written: Callable[[], str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, name: str, failing: bool,
) -> None:  # fmt: skip
    def break_down(*_: object) -> None:
        raise RuntimeError(SECRET)

    if failing:
        monkeypatch.setattr(engine, "submit", break_down)
    path, body = REQUESTS[name]
    answer = client.post(path, json=body)
    assert answer.headers["X-Request-Id"]
    seen = {
        "log": written(),
        "metrics": client.get("/metrics").text,
        "audit": json.dumps(client.get("/v1/audit").json()),
        "generations": json.dumps(client.get("/v1/generations").json()),
        "disk": "".join(file.read_bytes().decode("latin-1") for file in tmp_path.rglob("*") if file.is_file()),
    }
    assert [where for where, text in seen.items() if "xyzzy" in text or "plugh" in text] == []
    assert "interlock_prompt_tokens_total" in seen["metrics"]


def test_a_failure_is_logged_by_its_request(
    client: TestClient, engine: FakeEngine, written: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(engine, "submit", break_down)
    answer = client.post("/v1/completions", json=COMPLETION)
    records = [json.loads(line) for line in written().splitlines() if line.startswith("{")]
    told = [record for record in records if record.get("request_id") == answer.headers["X-Request-Id"]]
    assert answer.status_code == 500
    assert any(record.get("error") == "RuntimeError" for record in told)
