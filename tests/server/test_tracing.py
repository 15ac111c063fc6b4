"""Spans reach a collector with what happened, below the caller's own, and without a word of prompts or answers."""

from __future__ import annotations

import base64
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from server import tracing
from server.serve import running_services
from server.settings import ConfigurationError, read_settings
from tests.server.listening import listening

ONES = base64.b64encode(struct.pack("<32f", *[1.0] * 32)).decode()
STEERED = {"vector": {"data": ONES, "sites": [{"layer": 0}]}, "strength": 2}
MARKER = "xylophone-in-a-prompt"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """Takes what an exporter sends."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    @property
    def spans(self) -> list[Span]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        scopes = [scope for one in requests for resource in one.resource_spans for scope in resource.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    @contextmanager
    def listening(self) -> Iterator[Collector]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        yield self
        self._server.shutdown()
        thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector().listening() as collector:
        yield collector


@contextmanager
def serving(model: Path, data: Path, collector: Collector, **options: object) -> Iterator[httpx.Client]:
    given = {"model": str(model), "data_dir": data, "device": "cpu", "dtype": "float32", "threads": 1}
    chosen = read_settings(given | {"otlp_traces_endpoint": collector.url} | options, {})
    with (
        running_services(chosen, threading.Event()) as services,
        listening(services) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def facts(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}


def test_a_request_has_a_span_below_the_callers_and_one_for_each_row(model_folder, tmp_path, collector):
    body = {"model": "tiny", "prompt": MARKER, "max_tokens": 3, "temperature": 0.5, "ignore_eos": True, "n": 2}
    with serving(model_folder, tmp_path, collector) as client:
        answer = client.post("/v1/completions", json=body, headers={"traceparent": PARENT})
        assert answer.status_code == 200
        streamed = body | {"n": 1, "stream": True, "steering": [STEERED]}
        assert client.post("/v1/completions", json=streamed).text.endswith("data: [DONE]\n\n")
        assert client.get("/health/ready").status_code == 200
        assert client.get("/metrics").status_code == 200
    spans = collector.spans
    assert sorted(span.name for span in spans) == ["POST", "POST", "llm_request", "llm_request", "llm_request"]
    (traced,) = [span for span in spans if span.parent_span_id.hex() == PARENT.split("-")[2]]
    assert traced.trace_id.hex() == PARENT.split("-")[1]
    rows = [span for span in spans if span.parent_span_id == traced.span_id]
    assert len(rows) == 2
    known = facts(rows[0])
    assert known["gen_ai.request.model"] == "tiny"
    assert known["gen_ai.request.max_tokens"] == known["gen_ai.usage.output_tokens"] == 3
    assert known["gen_ai.usage.input_tokens"] == len(MARKER)
    assert known["gen_ai.request.temperature"] == 0.5
    assert 0 <= known["gen_ai.latency.time_in_queue"] <= known["gen_ai.latency.time_to_first_token"]
    assert {facts(row)["gen_ai.request.id"] for row in rows} == {answer.json()["id"], answer.json()["id"] + "-1"}
    (steered_row,) = [span for span in spans if span.events]
    (event,) = steered_row.events
    told = {one.key: one.value for one in event.attributes}
    assert (event.name, told["interlock.kind"].string_value) == ("interlock.intervention", "add")
    assert (told["interlock.strength"].double_value, told["interlock.generated_tokens"].int_value) == (2.0, 2)
    assert told["interlock.mean_relative_change"].double_value > 0
    assert not any(MARKER.encode() in content for content in collector.bodies)
    assert not any(choice["text"].encode() in b"".join(collector.bodies) for choice in answer.json()["choices"])


def test_a_row_that_is_given_up_or_fails_ends_its_span(model_folder, tmp_path, collector):
    body = {"model": "tiny", "prompt": MARKER, "max_tokens": 3000, "ignore_eos": True, "stream": True}
    with serving(model_folder, tmp_path, collector) as client:
        with client.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
        assert client.post("/v1/completions", json=body | {"stream": False, "max_tokens": 1}).is_success
    reasons = [facts(span).get("gen_ai.response.finish_reasons") for span in collector.spans]
    ended = sorted(one.values[0].string_value for one in reasons if one is not None)
    assert ended == ["abort", "length"]


def test_nothing_of_an_exception_or_a_query_is_told(model_folder, tmp_path, collector, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError(f"cannot read {MARKER}")

    monkeypatch.setattr("server.api.openai.tokenization.check_model", broken)
    with serving(model_folder, tmp_path, collector) as client:
        answer = client.post(f"/tokenize?secret={MARKER}", json={"model": "tiny", "prompt": "a"})
        assert answer.status_code == 500
        assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    (span,) = collector.spans
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "RuntimeError")
    assert facts(span)["http.url"] == "/tokenize"
    assert not any(MARKER.encode() in content for content in collector.bodies)


@pytest.mark.parametrize("field", ["User-Agent", "traceparent", "baggage"])
def test_heads_that_cannot_be_read_are_served_without_a_span(model_folder, tmp_path, collector, field):
    with serving(model_folder, tmp_path, collector) as client:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
        answer = client.post("/v1/completions", json=body, headers={field: b"\xff\xfe"})
        assert answer.status_code == 200
        assert answer.headers["x-request-id"].startswith("cmpl-")
    assert [span.name for span in collector.spans if span.name == "llm_request"] == ["llm_request"]


def test_routes_that_only_sound_like_probes_are_traced(model_folder, tmp_path, collector):
    with serving(model_folder, tmp_path, collector) as client:
        assert client.get("/v1/profiles/metrics").status_code == 404
        assert client.get("/health/live").status_code == 200
    assert [span.name for span in collector.spans] == ["GET"]


def test_a_failed_row_is_an_error():
    class Recorded:
        def __init__(self) -> None:
            self.told: dict[str, object] = {}
            self.status: object = None
            self.ended = False

        def set_attribute(self, name: str, value: object) -> None:
            self.told[name] = value

        def set_status(self, status: object) -> None:
            self.status = status

        def end(self) -> None:
            self.ended = True

    span = Recorded()
    tracing.RowSpan(span).end("error", (), drawn=0, queued_s=0.0, first_token_s=None)
    assert span.ended
    assert span.told["gen_ai.response.finish_reasons"] == ["error"]
    assert "gen_ai.latency.time_to_first_token" not in span.told
    assert span.status.value == Status.STATUS_CODE_ERROR


def test_without_the_extra_the_option_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'interlock\[otel\]'"):
        tracing.open_provider("http://localhost:4318/v1/traces")


def test_a_collector_that_is_away_disturbs_nobody(model_folder, tmp_path):
    away = Collector()
    away._server.server_close()
    with serving(model_folder, tmp_path, away) as client:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
        assert all(client.post("/v1/completions", json=body).status_code == 200 for _ in range(5))
