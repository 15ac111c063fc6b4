"""Prometheus metrics, named with vLLM's suffixes and buckets so that its dashboards work with another prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from server.types import EngineStats, GenerationInfo, MemoryPlan, Receipt

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


_DRIFT = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0)


class Metrics:
    """The server's metrics in ``registry``; every series carries the label ``model_name``."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self._registry = registry
        self._model = model

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(f"interlock_{name}", text, ["model_name"], buckets=buckets, registry=registry)
            return family.labels(model)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"interlock_{name}", text, ["model_name"], registry=registry).labels(model)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"interlock_{name}", text, ["model_name"], registry=registry).labels(model)

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
        self._ended = Counter(
            "interlock_request_success", "Rows by how they ended", ["model_name", "finished_reason"], registry=registry
        )
        self._interventions = Counter(
            "interlock_interventions",
            "Interventions applied to finished rows",
            ["model_name", "kind"],
            registry=registry,
        )
        self._touched = Counter(
            "interlock_intervention_tokens", "Token positions changed", ["model_name", "kind"], registry=registry
        )

        self._gate_hits = Counter(
            "interlock_gate_hits",
            "Tokens of finished rows at which the gate of an intervention was open",
            ["model_name", "kind", "name"],
            registry=registry,
        )

        self._drift = Histogram(
            "interlock_switch_drift",
            "Distance of prompts from what the switch was trained on, 1 as on its training prompts",
            ["model_name", "name"],
            buckets=_DRIFT,
            registry=registry,
        )

    def render(self, generations: Iterable[GenerationInfo], stats: EngineStats, memory: MemoryPlan) -> bytes:
        """The exposition text; ``generations`` and ``stats`` are the engine's at this moment."""
        self._kv_usage.set(stats.kv_promised / memory.kv)
        self._prefix_bytes.set(stats.prefix_bytes)
        self._prefix_queries.inc(stats.prefix_queries - self._seen.prefix_queries)
        self._prefix_hits.inc(stats.prefix_hits - self._seen.prefix_hits)
        self._prefix_resumed.inc(stats.prefix_resumed - self._seen.prefix_resumed)
        self._seen = stats
        waiting = [generation.state == "waiting" for generation in generations]
        self._waiting.set(sum(waiting))
        self._running.set(len(waiting) - sum(waiting))
        return generate_latest(self._registry)

    def ended(self, reason: str, receipts: Iterable[Receipt] = ()) -> None:
        """Counts a row that ended by ``stop``, ``length``, ``abort`` or ``error``, and what was done to it."""
        self._ended.labels(self._model, reason).inc()
        for receipt in receipts:
            self._interventions.labels(self._model, receipt.kind).inc()
            self._touched.labels(self._model, receipt.kind).inc(receipt.prompt_tokens + receipt.generated_tokens)
            if receipt.gate_hits is not None:
                self._gate_hits.labels(self._model, receipt.kind, receipt.name).inc(receipt.gate_hits)
            if receipt.drift is not None:
                self._drift.labels(self._model, receipt.name).observe(receipt.drift)


@dataclass(slots=True)
class RowTimer:
    """Times one row, from its construction on; ``clock`` gives seconds and never goes back."""

    metrics: Metrics
    clock: Callable[[], float]
    _started: float = field(init=False)
    _last_token: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._started = self.clock()

    def tokens(self, count: int) -> None:
        """Records ``count`` tokens that arrived together, now."""
        if count == 0:
            return
        now = self.clock()
        self.metrics.generation_tokens.inc(count)
        if self._last_token is None:
            self.metrics.first_token.observe(now - self._started)
        else:
            self.metrics.between_tokens.observe((now - self._last_token) / count)
        self._last_token = now

    def ended(self, reason: str, receipts: Iterable[Receipt] = ()) -> None:
        """Records the end of the row; ``abort`` and ``error`` have no latency worth keeping."""
        self.metrics.ended(reason, receipts)
        if reason in ("stop", "length"):
            self.metrics.whole_request.observe(self.clock() - self._started)
