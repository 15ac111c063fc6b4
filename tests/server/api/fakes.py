"""Stand-ins for codec, catalog, engine and jobs: no model, no thread, everything decided by the test."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

from mappers.sites import Site
from server.engine.request import GenerationRequest, InterventionUpdate
from server.engine.text import EncodedPrompt
from server.errors import Conflict, ContextLengthExceeded, InvalidRequest, NotFound, Overloaded
from server.interventions.gates import GateMark
from server.jobs.model import Job, JobEvent, JobState, no_such_job
from server.types import (
    EngineLimits,
    EngineStats,
    Event,
    Finished,
    GenerationInfo,
    InlineVector,
    InterventionSpec,
    MemoryPlan,
    ModelInfo,
    PromptScored,
    Receipt,
    TokenLogprob,
    TokensGenerated,
    TokensScored,
)

WIDTH = 4
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
LIMITS = EngineLimits(
    max_batch=8, max_waiting=8, context=2048, prefill_tokens=64, memory=MemoryPlan(2**20, 2**30, 2**20)
)
INFO = ModelInfo("fake", "FakeForCausalLM", 3, WIDTH, 1000, 2048, "float32", "cpu", "0123456789abcdef" * 4)
KNOWN = {"safe": "switch", "other": "switch", "refusal": "vector", "joy": "vector"}
PROBES = ("harmful", "spam")


def id_of(name: str) -> str:
    """Id of the artifact that the fake catalog knows by ``name``."""
    return f"art_{name.encode().hex():0<24}"[:28]


class FakeCodec:
    """One token a character, its code point; a chat is ``<role>text`` for each message."""

    vocab_size = 1000
    has_chat_template = True

    def encode(self, text: str, *, add_special_tokens: bool = True) -> EncodedPrompt:
        return self.from_ids([ord(character) for character in text])

    def encode_chat(
        self, messages: list[dict[str, str]], *, add_generation_prompt=True, continue_final_message=False
    ) -> EncodedPrompt:
        if not self.has_chat_template:
            raise InvalidRequest("this model has no chat template; use /v1/completions", param="messages")
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        return self.encode(text + ("<assistant>" if add_generation_prompt else ""))

    def from_ids(self, ids) -> EncodedPrompt:
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise InvalidRequest(f"token id {token} is not in the vocabulary", param="prompt")
        text = "".join(map(chr, ids))
        return EncodedPrompt(tuple(ids), text, tuple((i, i + 1) for i in range(len(ids))))

    def decode(self, ids, *, skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))

    def token_text(self, token: int) -> str:
        return chr(token)

    def token_bytes(self, token: int) -> bytes:
        return chr(token).encode()


@dataclass(frozen=True, eq=False)
class FakeResolved:
    """What the fake catalog gives: the spec itself, with what receipts need."""

    spec: InterventionSpec
    name: str

    @property
    def operation(self) -> str:
        return self.spec.operation

    @property
    def strength(self) -> float:
        return self.spec.strength

    @property
    def digest(self) -> str:
        return id_of(self.name)

    @property
    def gate_mark(self) -> GateMark | None:
        if self.spec.gate is None:
            return None
        probe = next(name for name in PROBES if self.spec.gate.probe in (name, id_of(name)))
        return GateMark(Site(0), id_of(probe), 0.0, 0.0, 1)


@dataclass
class FakeCatalog:
    """Knows the names in ``known``."""

    known: dict[str, str] = field(default_factory=lambda: dict(KNOWN))
    forgotten: list[str] = field(default_factory=list)
    thread: threading.Thread | None = None
    resident_ids: frozenset[str] = frozenset()

    def resolve(self, spec: InterventionSpec) -> FakeResolved:
        self.thread = threading.current_thread()
        if spec.gate is not None and spec.gate.probe not in (*PROBES, *map(id_of, PROBES)):
            raise NotFound(f"there is no artifact {spec.gate.probe!r}", param=f"{spec.param}.gate")
        if isinstance(spec.source, InlineVector):
            if len(spec.source.data) != 4 * WIDTH:
                raise InvalidRequest("wrong width", param=f"{spec.param}.vector.data", code="wrong_width")
            return FakeResolved(spec, "inline")
        where = spec.param if spec.operation == "switch" else f"{spec.param}.vector"
        name = next((name for name in self.known if spec.source in (name, id_of(name))), None)
        if name is None:
            raise NotFound(f"there is no artifact {spec.source!r}; there are {', '.join(self.known)}", param=where)
        return FakeResolved(spec, name)

    def forget(self, artifact_id: str) -> None:
        self.forgotten.append(artifact_id)


@dataclass
class FakeEngine:
    """Writes the alphabet. With ``hold`` it emits nothing by itself: the test does, through ``sinks``."""

    hold: bool = False
    hold_scoring: bool = False
    together_at_most: int = 8
    healthy: bool = True
    texts: str = ALPHABET
    limits: EngineLimits = LIMITS
    info: ModelInfo = INFO
    requests: dict[str, GenerationRequest] = field(default_factory=dict)
    sinks: dict[str, Callable[[Event], None]] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    updates: list[tuple[str, InterventionUpdate]] = field(default_factory=list)
    running: dict[str, GenerationRequest] = field(default_factory=dict)

    def submit(self, request: GenerationRequest, sink: Callable[[Event], None]) -> None:
        self.check_places()
        self.requests[request.id] = self.running[request.id] = request
        self.sinks[request.id] = sink
        if not self.hold:
            self.finish(request.id)

    def submit_together(self, requests: Sequence[GenerationRequest], sinks: Sequence[Callable[[Event], None]]) -> None:
        """The divergence of row i is i at every token."""
        for index, (request, sink) in enumerate(zip(requests, sinks, strict=True)):
            self.requests[request.id] = self.running[request.id] = request
            self.sinks[request.id] = sink
            if not self.hold_scoring:
                del self.running[request.id]
                sink(TokensScored((float(index),) * len(request.scored_ids) if index else ()))
                sink(Finished("length", len(request.prompt_ids), 0, ()))

    def check_together(self, requests: Sequence[GenerationRequest]) -> None:
        if len(requests) > self.together_at_most:
            raise ContextLengthExceeded("not at once", param="settings")

    def check_places(self) -> None:
        if len(self.running) >= self.limits.max_batch + self.limits.max_waiting:
            raise Overloaded("all places are taken")

    def finish(self, generation_id: str) -> None:
        request = self.running.pop(generation_id)
        for event in events_of(request, self.texts):
            self.sinks[generation_id](event)

    def cancel(self, generation_id: str) -> None:
        self.cancelled.append(generation_id)
        self.running.pop(generation_id, None)

    def update(self, generation_id: str, update: InterventionUpdate) -> None:
        if generation_id not in self.running:
            raise NotFound("not running")
        self.updates.append((generation_id, update))

    def stats(self) -> EngineStats:
        return EngineStats()

    def generations(self) -> list[GenerationInfo]:
        return [
            GenerationInfo(
                r.id, r.owner, "decode", len(r.prompt_ids), 0, tuple((i.name, i.strength) for i in r.interventions)
            )
            for r in self.running.values()
        ]


def events_of(request: GenerationRequest, text: str = ALPHABET) -> list[Event]:
    """What the engine says about a request whose continuation is ``text``."""
    sampling = request.sampling
    written = text[: sampling.max_tokens]
    reason = "length" if sampling.max_tokens <= len(text) else "stop"
    for stop in sampling.stop:
        if stop in written:
            written, reason = written[: written.index(stop)], "stop"
    events: list[Event] = []
    if sampling.prompt_logprobs is not None:
        events.append(
            PromptScored(tuple(_logprob(token, sampling.prompt_logprobs) for token in request.prompt_ids[1:]))
        )
    for character in written:
        logprobs = () if sampling.logprobs is None else (_logprob(ord(character), sampling.logprobs),)
        events.append(TokensGenerated(character, (ord(character),), logprobs))
    receipts = tuple(receipt_of(i, len(request.prompt_ids), len(written)) for i in request.interventions)
    return [*events, Finished(reason, len(request.prompt_ids), len(written), receipts)]


def receipt_of(resolved: FakeResolved, prompt: int, generated: int) -> Receipt:
    return Receipt(
        resolved.operation, resolved.name, "d" * 64, ("resid_post.1",), resolved.strength, prompt, generated, 0.1
    )


def _logprob(token: int, count: int) -> TokenLogprob:
    best = tuple((token + i, -0.5 - i) for i in range(count))
    return TokenLogprob(token, -0.5, best)


@dataclass
class FakeJobs:
    """Jobs that never run; ``log_text`` and the events are the test's."""

    jobs: dict[str, Job] = field(default_factory=dict)
    happened: list[JobEvent] = field(default_factory=list)

    def counts(self) -> dict[tuple[str, str], int]:
        return {("train_switch", "queued"): len(self.jobs)}

    def submit(self, spec, owner: str | None) -> Job:
        job = Job(
            id=f"job_{len(self.jobs) + 1}",
            kind=spec.kind,
            name=spec.name,
            state=JobState.QUEUED,
            owner=owner,
            parameters=spec.parameters.model_dump(mode="json"),
            inputs={},
            created_at=1.0,
            priority=spec.priority,
        )
        self.jobs[job.id] = job
        return job

    def get(self, job_id: str) -> Job:
        if job_id not in self.jobs:
            raise no_such_job(job_id)
        return self.jobs[job_id]

    def list(self, *, owner: str | None = None, limit: int = 1000) -> list[Job]:
        return [job for job in self.jobs.values() if owner in (None, job.owner)][:limit]

    def cancel(self, job_id: str) -> Job:
        job = self.get(job_id)
        if job.state is not JobState.QUEUED:
            raise Conflict(f"job {job_id} is {job.state}: only waiting and running jobs can be cancelled")
        self.jobs[job_id] = replace(job, state=JobState.CANCELLED)
        return self.jobs[job_id]

    def resume(self, job_id: str) -> Job:
        self.jobs[job_id] = replace(self.get(job_id), state=JobState.QUEUED)
        return self.jobs[job_id]

    def log(self, job_id: str) -> str:
        return f"log of {job_id}\n"

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        for event in self.happened:
            if event.id > after:
                yield event
