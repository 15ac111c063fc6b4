"""Prometheus metrics, named with vLLM's suffixes and buckets so that its dashboards work with another prefix."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from server.types import EngineStats, GenerationInfo, MemoryPlan, Receipt

if TYPE_CHECKING:
    from server.tracing import RowSpan

_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN_TOKENS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_WHOLE_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)

_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
_RELATIVE_CHANGE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0)
_DRIFT = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0)


PREFIX = "interlock_"
OTHERS = "(others)"
"""Label of all artifacts beyond the first :data:`MOST_NAMES`: a label takes memory here and in Prometheus for ever."""
MOST_NAMES = 200

_VLLM = frozenset(
    PREFIX + name
    for name in (
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
        *("prefix_cache_queries", "prefix_cache_hits", "prompt_tokens", "generation_tokens", "request_success"),
        *("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"),
        *("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"),
        *("request_prompt_tokens", "request_generation_tokens"),
    )
)
"""Families that vLLM has too."""

JobCounts = Mapping[tuple[str, str], int]
"""Jobs by kind and state."""


class Metrics:
    """The server's metrics in ``registry``; every series carries the label ``model_name``.

    ``as_vllm`` repeats those that vLLM has under its own names, for dashboards that were made for it.
    """

    def __init__(self, registry: CollectorRegistry, model: str, *, as_vllm: bool = False) -> None:
        self._registry = registry
        self._model = model
        self._repeated = CollectorRegistry() if as_vllm else None
        if self._repeated is not None:
            self._repeated.register(_Renamed(registry))
        self._lock = threading.Lock()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(PREFIX + name, text, ["model_name"], buckets=buckets, registry=registry)
            return family.labels(model)

        def counter(name: str, text: str) -> Counter:
            return Counter(PREFIX + name, text, ["model_name"], registry=registry).labels(model)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(PREFIX + name, text, ["model_name"], registry=registry).labels(model)

        self._running = gauge("num_requests_running", "Rows being computed")
        self._waiting = gauge("num_requests_waiting", "Rows waiting for a place in the batch")
        self._kv_usage = gauge(
            "kv_cache_usage_perc", "Share of the memory for keys and values that is promised, 0 to 1"
        )
        self._prefix_bytes = gauge("prefix_cache_bytes", "Memory that reusable prefixes take")
        self._prefix_queries = counter("prefix_cache_queries", "Prompt tokens that were looked up")
        self._prefix_hits = counter("prefix_cache_hits", "Prompt tokens that were reused in all layers")
        self._prefix_resumed = counter("prefix_cache_resumed", "Prompt tokens that were reused in the lower layers")
        self._seen = EngineStats()
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of admitted rows")
        self.generation_tokens = counter("generation_tokens", "Tokens drawn")
        self.first_token = histogram("time_to_first_token_seconds", "Submission to first token", _FIRST_TOKEN_S)
        self.between_tokens = histogram("inter_token_latency_seconds", "Time from token to token", _BETWEEN_TOKENS_S)
        self.whole_request = histogram("e2e_request_latency_seconds", "Submission to last token", _WHOLE_REQUEST_S)
        self.queued = histogram("request_queue_time_seconds", "Submission to a place in the batch", _WHOLE_REQUEST_S)
        self.prefill = histogram("request_prefill_time_seconds", "Place in the batch to first token", _WHOLE_REQUEST_S)
        self.decode = histogram("request_decode_time_seconds", "First token to last", _WHOLE_REQUEST_S)
        self.request_prompt = histogram("request_prompt_tokens", "Prompt tokens of a finished row", _TOKENS)
        self.request_generation = histogram("request_generation_tokens", "Tokens drawn for a finished row", _TOKENS)
        self._jobs = Gauge(
            PREFIX + "jobs", "Jobs by kind and state", ["model_name", "kind", "state"], registry=registry
        )
        self._ended = Counter(
            PREFIX + "request_success", "Rows by how they ended", ["model_name", "finished_reason"], registry=registry
        )
        self._interventions = _InterventionMetrics(registry, model)

    def render(
        self, generations: Iterable[GenerationInfo], stats: EngineStats, memory: MemoryPlan, jobs: JobCounts
    ) -> bytes:
        """The exposition text; ``generations``, ``stats`` and ``jobs`` are those of this moment."""
        with self._lock:
            self._kv_usage.set(stats.kv_promised / memory.kv)
            self._prefix_bytes.set(stats.prefix_bytes)
            self._prefix_queries.inc(stats.prefix_queries - self._seen.prefix_queries)
            self._prefix_hits.inc(stats.prefix_hits - self._seen.prefix_hits)
            self._prefix_resumed.inc(stats.prefix_resumed - self._seen.prefix_resumed)
            self._seen = stats
            waiting = [generation.state == "waiting" for generation in generations]
            self._waiting.set(sum(waiting))
            self._running.set(len(waiting) - sum(waiting))
            self._jobs.clear()
            for (kind, state), count in jobs.items():
                self._jobs.labels(self._model, kind, state).set(count)
            text = generate_latest(self._registry)
            return text if self._repeated is None else text + generate_latest(self._repeated)

    def ended(self, reason: str, receipts: Iterable[Receipt] = ()) -> None:
        """Counts a row that ended by ``stop``, ``length``, ``abort`` or ``error``, and what was done to it."""
        self._ended.labels(self._model, reason).inc()
        for receipt in receipts:
            self._interventions.count(receipt)


class _InterventionMetrics:
    """What was done to finished rows, by kind and artifact."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self._model = model
        self._names: set[str] = set()
        self._lock = threading.Lock()
        labels = ["model_name", "kind", "name"]
        self._applied = Counter(
            PREFIX + "interventions", "Interventions applied to finished rows", labels, registry=registry
        )
        self._touched = Counter(PREFIX + "intervention_tokens", "Token positions changed", labels, registry=registry)
        self._change = Histogram(
            PREFIX + "intervention_relative_change",
            "Mean change of an activation as a share of its norm, by finished row",
            labels,
            buckets=_RELATIVE_CHANGE,
            registry=registry,
        )
        self._gate_hits = Counter(
            PREFIX + "gate_hits",
            "Tokens of finished rows at which the gate of an intervention was open",
            labels,
            registry=registry,
        )
        self._drift = Histogram(
            PREFIX + "switch_drift",
            "Distance of prompts from what the switch was trained on, 1 as on its training prompts",
            ["model_name", "name"],
            buckets=_DRIFT,
            registry=registry,
        )

    def count(self, receipt: Receipt) -> None:
        """Adds one intervention of a row that ended."""
        labels = (self._model, receipt.kind, self._label(receipt.name))
        self._applied.labels(*labels).inc()
        self._touched.labels(*labels).inc(receipt.prompt_tokens + receipt.generated_tokens)
        self._change.labels(*labels).observe(receipt.mean_relative_change)
        if receipt.gate_hits is not None:
            self._gate_hits.labels(*labels).inc(receipt.gate_hits)
        if receipt.drift is not None:
            self._drift.labels(self._model, labels[2]).observe(receipt.drift)

    def _label(self, name: str) -> str:
        with self._lock:
            if len(self._names) < MOST_NAMES:
                self._names.add(name)
            return name if name in self._names else OTHERS


class _Renamed(Collector):
    """The families of a registry that vLLM has, under vLLM's names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            if family.name not in _VLLM:
                continue
            renamed = Metric(_as_vllm(family.name), family.documentation, family.type)
            renamed.samples = [sample._replace(name=_as_vllm(sample.name)) for sample in family.samples]
            yield renamed


def _as_vllm(name: str) -> str:
    return "vllm:" + name.removeprefix(PREFIX)


@dataclass(slots=True)
class RowTimer:
    """Times one row of ``prompt_tokens``, from its construction on, for metrics and for its span, where it has one.

    ``clock`` gives seconds and never goes back.
    """

    metrics: Metrics
    clock: Callable[[], float]
    prompt_tokens: int
    span: RowSpan | None = None
    _started: float = field(init=False)
    _first_token: float | None = field(init=False, default=None)
    _last_token: float = field(init=False, default=0.0)
    _drawn: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._started = self.clock()
        self.metrics.prompt_tokens.inc(self.prompt_tokens)

    def tokens(self, count: int) -> None:
        """Records ``count`` tokens that arrived together, now."""
        if count == 0:
            return
        now = self.clock()
        self.metrics.generation_tokens.inc(count)
        self._drawn += count
        if self._first_token is None:
            self.metrics.first_token.observe(now - self._started)
            self._first_token = now
        else:
            self.metrics.between_tokens.observe((now - self._last_token) / count)
        self._last_token = now

    def ended(self, reason: str, receipts: Iterable[Receipt] = (), queued_s: float = 0.0) -> None:
        """Records the end of the row, which waited ``queued_s`` for its place.

        ``abort`` and ``error`` have no latency worth keeping.
        """
        metrics = self.metrics
        metrics.ended(reason, receipts)
        if self.span is not None:
            first = None if self._first_token is None else self._first_token - self._started
            self.span.end(reason, receipts, drawn=self._drawn, queued_s=queued_s, first_token_s=first)
        if reason not in ("stop", "length"):
            return
        metrics.whole_request.observe(self.clock() - self._started)
        metrics.queued.observe(queued_s)
        metrics.request_prompt.observe(self.prompt_tokens)
        metrics.request_generation.observe(self._drawn)
        if self._first_token is not None:
            metrics.prefill.observe(max(0.0, self._first_token - self._started - queued_s))
            metrics.decode.observe(self._last_token - self._first_token)
