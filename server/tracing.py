"""OpenTelemetry spans: one for each HTTP request, by its library, and below it one for each row that was computed.

Attributes follow the semantic conventions for generative AI where they have a name, vLLM's spans where those have one,
and hold no text of prompts or answers. Needs the extra ``otel``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from server.settings import ConfigurationError
from server.types import Receipt, SamplingParams

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

_log = structlog.get_logger(__name__)

_LAST_SPANS_S = 2.0
"""A collector that is away, which is asked again and again, must not hold up the end of the server."""
_UNTRACED = r"^https?://[^/]+/(health/|metrics$)"
_BEGAN = "interlock.tracing"


def open_provider(endpoint: str) -> TracerProvider:
    """Sends spans to the collector at ``endpoint`` (OTLP over HTTP), in batches, on a thread of its own.

    ``OTEL_*`` variables are honoured; to be shut down at the end.

    Raises ConfigurationError where the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"otlp_traces_endpoint: {error.name} is not installed: pip install 'interlock[otel]'"
        ) from None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "interlock", "service.version": version("interlock")})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


class Tracing:
    """Makes the spans of one server."""

    def __init__(self, provider: TracerProvider, model: str) -> None:
        self._provider = provider
        self._tracer: Tracer = provider.get_tracer("interlock")
        self._model = model

    def http(self, app: ASGIApp) -> ASGIApp:
        """The ASGI application with a span around every request but probes; callers' ``traceparent`` goes on."""
        return _TracedHttp(app, self._provider)

    def row(self, identity: str, prompt_tokens: int, sampling: SamplingParams) -> RowSpan:
        """Starts the span of a row; its parent is the request that is being handled."""
        from opentelemetry.trace import SpanKind

        attributes: dict[str, str | int | float] = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "interlock",
            "gen_ai.request.model": self._model,
            "gen_ai.request.id": identity,
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.usage.input_tokens": prompt_tokens,
        }
        return RowSpan(self._tracer.start_span("llm_request", kind=SpanKind.INTERNAL, attributes=attributes))

    def close(self) -> None:
        """Sends what is left, if the collector takes it soon."""
        sending = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        sending.start()
        sending.join(_LAST_SPANS_S)


class _TracedHttp:
    """OpenTelemetry's middleware, kept from what it would tell or break.

    Exceptions pass it by: it would export their messages, which may quote a request. Queries of URLs are left out.
    Heads that it cannot read are served without a span.
    """

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        self._app = app
        traced: Any = OpenTelemetryMiddleware(
            self._quietly,
            excluded_urls=_UNTRACED,
            tracer_provider=provider,
            exclude_spans=["receive", "send"],
            default_span_details=lambda scope: (scope["method"], {}),
            server_request_hook=_without_query,
        )
        self._traced: ASGIApp = traced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began: list[Exception | None] = []
        scope[_BEGAN] = began
        try:
            await self._traced(scope, receive, send)
        except Exception as error:
            if began:
                raise
            _log.warning("untraced", error=type(error).__name__)
            await self._app(scope, receive, send)
            return
        if began and began[0] is not None:
            raise began[0]

    async def _quietly(self, scope: Scope, receive: Receive, send: Send) -> None:
        from opentelemetry.trace import StatusCode, get_current_span

        began: list[Exception | None] = scope[_BEGAN]
        began.append(None)
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - raised again on the other side of the span
            get_current_span().set_status(StatusCode.ERROR, type(error).__name__)
            began[0] = error


def _without_query(span: Span, scope: Scope) -> None:
    if span.is_recording():
        span.set_attribute("http.url", str(scope["path"]))


class RowSpan:
    """The span of one row. Times are seconds."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def end(
        self, reason: str, receipts: Iterable[Receipt], *, drawn: int, queued_s: float, first_token_s: float | None
    ) -> None:
        """Ends it: ``reason`` is that of the metrics, ``first_token_s`` counts from the start."""
        from opentelemetry.trace import StatusCode

        span = self._span
        span.set_attribute("gen_ai.usage.output_tokens", drawn)
        span.set_attribute("gen_ai.response.finish_reasons", [reason])
        span.set_attribute("gen_ai.latency.time_in_queue", queued_s)
        if first_token_s is not None:
            span.set_attribute("gen_ai.latency.time_to_first_token", first_token_s)
        for receipt in receipts:
            span.add_event("interlock.intervention", _facts(receipt))
        if reason == "error":
            span.set_status(StatusCode.ERROR)
        span.end()


def _facts(receipt: Receipt) -> dict[str, str | int | float]:
    known: dict[str, str | int | float | None] = {
        "kind": receipt.kind,
        "name": receipt.name,
        "digest": receipt.digest,
        "strength": receipt.strength,
        "prompt_tokens": receipt.prompt_tokens,
        "generated_tokens": receipt.generated_tokens,
        "mean_relative_change": receipt.mean_relative_change,
        "gate_hits": receipt.gate_hits,
        "drift": receipt.drift,
    }
    return {f"interlock.{name}": value for name, value in known.items() if value is not None}
