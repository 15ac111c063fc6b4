"""The engine loop: admit, schedule, plan, forward, sample, commit, deliver; on one thread.

Other threads only queue commands. Every end of a row (finish, cancel, error) passes through :meth:`Engine._release`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

import structlog
import torch

from server.engine.checks import check_request, check_together
from server.engine.request import GenerationRequest, InterventionUpdate
from server.engine.row import Row, rows_of
from server.engine.runner import Runner, StepResult
from server.engine.sampling import SamplingPlan, chosen_logprobs, draw
from server.engine.scheduler import Batch, Scheduler
from server.engine.text import TextCodec
from server.errors import Conflict, NotFound, Overloaded, Unavailable
from server.interventions.active import ActiveIntervention
from server.types import (
    EngineLimits,
    EngineStats,
    ErrorCode,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationInfo,
    ModelInfo,
    PromptScored,
    TokenLogprob,
    TokensGenerated,
    TokensScored,
)

_log = structlog.get_logger(__name__)
_IDLE_POLL_S = 0.5
_SHUTDOWN_WAIT_S = 5.0
_NON_FINITE = "the model's output is not finite; lower the strength of the steering"
_PEER_GONE = "nobody waits for a row that this one was compared with"

Sink = Callable[[Event], None]


class Engine:
    """Serves rows with continuous batching. ``submit``, ``cancel``, ``update`` and ``generations`` are thread safe."""

    def __init__(
        self,
        runner: Runner,
        codec: TextCodec,
        info: ModelInfo,
        limits: EngineLimits,
        eos_ids: frozenset[int],
        idle_prefill_tokens: int | None = None,
    ) -> None:
        self.info = info
        self.limits = limits
        self._runner = runner
        self._codec = codec
        self._eos_ids = eos_ids
        self._scheduler = Scheduler(
            limits.max_batch,
            limits.prefill_tokens,
            idle_prefill_tokens=idle_prefill_tokens,
            budget=limits.memory.kv,
            cost=lambda row: runner.cache.row_bytes(row.request.tokens_at_most),
            may_start=runner.reuse.may_start,
            start=self._start,
        )
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._rows: dict[str, Row] = {}
        # Re-entrant: a sink, which is called under it, may cancel.
        self._lock = threading.RLock()
        self._accepting = True
        self._stopping = threading.Event()
        self._sampling: SamplingPlan | None = None
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    # -- called from any thread ---------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """Whether requests are taken and the thread that serves them is alive."""
        return self._accepting and self._thread.is_alive()

    def start(self) -> None:
        """Starts the engine's thread."""
        self._thread.start()

    def submit(self, request: GenerationRequest, sink: Sink) -> None:
        """Queues a request; ``sink`` receives its events on the engine's thread, and must not block.

        Raises ContextLengthExceeded or InvalidRequest for a request that can never run, Conflict for an id that is
        running, Overloaded when all places are taken, Unavailable when draining.
        """
        self._queue((request,), (sink,), need_places=True)

    def submit_together(self, requests: Sequence[GenerationRequest], sinks: Sequence[Sink]) -> None:
        """Queues requests that score one text behind one prompt, to be read side by side; the first is the reference.

        Each sink gets the divergences once the text was read. What ends one request ends all. No places are asked for:
        the caller's rows have had them while they wrote the text. Raises otherwise as :meth:`submit`.
        """
        self.check_together(requests)
        self._queue(requests, sinks, need_places=False)

    def check_together(self, requests: Sequence[GenerationRequest]) -> None:
        """Raises ContextLengthExceeded for requests whose keys and values can never be in memory at once."""
        check_together(requests, self.limits, self._runner.cache.row_bytes)

    def check_places(self) -> None:
        """Raises Overloaded when all places are taken; lets a caller refuse before it prepares a request."""
        limits = self.limits
        if len(self._rows) >= limits.max_batch + limits.max_waiting:
            raise Overloaded(f"all {limits.max_batch} running and {limits.max_waiting} waiting places are taken")

    def _queue(self, requests: Sequence[GenerationRequest], sinks: Sequence[Sink], *, need_places: bool) -> None:
        for request in requests:
            check_request(request, self.limits, self.info.vocab_size, self._runner.cache.row_bytes)
        rows = rows_of(requests, sinks, self._codec)
        with self._lock:
            if not self._accepting:
                raise Unavailable("the server is shutting down; try another replica or later")
            for request in requests:
                if request.id in self._rows:
                    raise Conflict(f"a generation with id '{request.id}' is running", param="id")
            if need_places:
                self.check_places()
            self._rows |= {row.request.id: row for row in rows}
            self._commands.put(lambda: self._admit(rows))

    def cancel(self, generation_id: str) -> None:
        """Stops a generation, and its peers, at the next step; no event follows for it. Unknown ids are ignored."""
        with self._lock:
            row = self._rows.pop(generation_id, None)
            if row is not None:
                self._commands.put(lambda: self._fail(row, "engine_failed", _PEER_GONE))

    def update(self, generation_id: str, update: InterventionUpdate) -> None:
        """Changes the interventions of a running generation from its next token on; raises NotFound."""
        row = self._rows.get(generation_id)
        if row is None or row.request.scored_ids:
            raise NotFound(f"no generation '{generation_id}' is running", param="id")
        self._commands.put(lambda: self._change(row, update))

    def generations(self) -> list[GenerationInfo]:
        """Running and waiting generations."""
        with self._lock:
            rows = list(self._rows.values())
        return [row.info() for row in rows]

    def stats(self) -> EngineStats:
        """Figures of this moment; other threads may read them while the engine goes on."""
        counts, held = self._runner.reuse.counts, self._runner.reuse.prefixes.nbytes
        return EngineStats(self._scheduler.promised, held, counts.asked, counts.reused, counts.resumed)

    def drain(self, timeout_s: float) -> None:
        """Takes no more requests and waits for the running ones; those left after ``timeout_s`` fail with shutdown."""
        with self._lock:
            self._accepting = False
        deadline = time.monotonic() + timeout_s
        while self._rows and time.monotonic() < deadline:
            time.sleep(0.02)
        told = threading.Event()
        self._commands.put(lambda: self._fail_all("shutdown", "the server is shutting down"))
        self._commands.put(told.set)
        if self._thread.is_alive():
            told.wait(_SHUTDOWN_WAIT_S)

    def stop(self) -> None:
        """Ends the thread and takes the hooks off the model; generations that still run fail with shutdown."""
        self.drain(timeout_s=0)
        self._commands.put(self._stopping.set)
        if self._thread.is_alive():
            self._thread.join()
        self._runner.close()

    # -- the engine's thread ------------------------------------------------------------------------------------

    def step(self) -> bool:
        """One forward; False when nothing was to be done."""
        batch = self._scheduler.next_batch()
        if batch is None:
            return False
        result = None
        try:
            result = self._runner.forward(batch)
            tokens, logprobs = self._draw(result)
        except Exception as error:  # noqa: BLE001 - a forward that raises ends rows, never the server
            self._abandon(batch, error, computed=result is not None)
            return True
        self._scheduler.commit(batch)
        self._deliver(result, tokens, logprobs)
        return True

    def _loop(self) -> None:
        busy = False
        try:
            while not self._stopping.is_set():
                try:
                    self._obey(wait=not busy)
                    busy = self.step()
                except Exception as error:  # noqa: BLE001 - without this thread nobody would ever be answered again
                    _log.error("engine_failed", error=repr(error))
                    self._fail_all("engine_failed", "the engine failed; the same request may succeed now")
                    busy = True
        finally:
            # A device that is lost fails the clearing up as well: better to be replaced than to let requests wait.
            with self._lock:
                self._accepting = False
            self._tell_all("engine_failed", "the engine has stopped")

    def _obey(self, wait: bool) -> None:
        try:
            command = self._commands.get(timeout=_IDLE_POLL_S) if wait else self._commands.get_nowait()
            while True:
                command()
                command = self._commands.get_nowait()
        except Empty:
            return

    def _admit(self, rows: Sequence[Row]) -> None:
        if any(row.released for row in rows):
            return
        for row in rows:
            row.interventions = [ActiveIntervention.begin(r, self._runner.meters) for r in row.request.interventions]
            self._runner.reuse.admit(row)
        self._scheduler.submit(*rows)

    def _change(self, row: Row, update: InterventionUpdate) -> None:
        if row.released:
            return
        switch = [a for a in row.interventions if a.resolved.operation == "switch"]
        steering = [a for a in row.interventions if a.resolved.operation != "switch"]
        current: list[ActiveIntervention] = []
        for old, wanted in ((switch, update.switch), (steering, update.steering)):
            if wanted is None:
                current += old
                continue
            for resolved in wanted:
                match = next((a for a in old if a.continues(resolved)), None)
                if match is None:
                    current.append(ActiveIntervention.begin(resolved, self._runner.meters))
                else:
                    old.remove(match)
                    match.resolved = resolved
                    current.append(match)
            row.ended += old
        row.interventions = current
        row.revision += 1
        # What is known of positions that were not computed yet was known for the settings before.
        row.known_until = row.computed

    def _draw(self, result: StepResult) -> tuple[list[int], list[TokenLogprob | None]]:
        if not result.ready:
            return [], []
        if self._sampling is None or self._sampling.rows != result.ready:
            vocab = result.logits_BV.shape[-1]
            self._sampling = SamplingPlan.build(result.ready, vocab, result.logits_BV.device)
        # amax is NaN or infinite exactly where a row holds NaN or +inf, in one pass over the logits.
        finite = torch.isfinite(result.logits_BV.amax(-1)).tolist()
        tokens = draw(result.logits_BV, self._sampling)
        logprobs = chosen_logprobs(result.logits_BV, tokens, result.ready)
        return [token if ok else -1 for token, ok in zip(tokens, finite, strict=True)], logprobs

    def _deliver(self, result: StepResult, tokens: list[int], logprobs: list[TokenLogprob | None]) -> None:
        for row, reason in result.failed.items():
            self._fail(row, "intervention_failed", f"{reason}; no text was generated without it")
        spoilt = self._spoilt((*result.ready, *result.compared))
        for row, token, logprob in zip(result.ready, tokens, logprobs, strict=True):
            if row.released:
                continue
            if token < 0 or row in spoilt:
                self._fail(row, "non_finite", _NON_FINITE)
                continue
            if row.generated == 0:
                self._runner.reuse.publish(row)
            if row.generated == 0 and row.request.sampling.prompt_logprobs is not None:
                self._emit(row, PromptScored(tuple(row.prompt_logprobs)))
            if row.request.sampling.max_tokens == 0:
                self._finish(row, "length")
            else:
                self._append(row, token, logprob)
        for row in spoilt.intersection(result.compared):
            self._fail(row, "non_finite", _NON_FINITE)
        for row in result.compared:
            self._emit(row, TokensScored(tuple(row.divergences)))
        if result.compared and not result.compared[0].released:
            self._finish(result.compared[0], "length")

    def _spoilt(self, rows: Sequence[Row]) -> frozenset[Row]:
        """Rows whose output is not finite, though it may look as if it were at its end."""
        steered = any(row.interventions or row.ended for row in rows)
        # A norm layer turns an overflow into zeros, and so into logits that look finite: the meters know better.
        bad = self._runner.meters.overflowed() if steered else frozenset()
        meters = {row: [active.meter for active in (*row.interventions, *row.ended)] for row in rows}
        return frozenset(row for row in rows if not row.finite or not bad.isdisjoint(meters[row]))

    def _append(self, row: Row, token: int, logprob: TokenLogprob | None) -> None:
        row.tokens.append(token)
        sampling = row.request.sampling
        ended = token in self._eos_ids and not sampling.ignore_eos
        text = "" if ended else row.text.push(token)
        reason: FinishReason | None = "stop" if ended or row.text.stopped else None
        if reason is None and row.generated >= sampling.max_tokens:
            reason = "length"
        if reason is not None:
            text += row.text.finish()
            reason = "stop" if row.text.stopped else reason
        if not ended or text:
            ids = () if ended else (token,)
            self._emit(row, TokensGenerated(text, ids, (logprob,) if logprob is not None and ids else ()))
        if reason is not None:
            self._finish(row, reason)

    def _finish(self, row: Row, reason: FinishReason) -> None:
        for ended in row.together:
            self._runner.reuse.publish(ended)
            receipts = tuple(active.end(self._runner.meters) for active in ended.take_interventions())
            self._emit(
                ended, Finished(reason, ended.prompt_len, ended.generated, receipts, ended.reused, ended.queued_s)
            )
        self._release(row)

    def _fail(self, row: Row, code: ErrorCode, message: str) -> None:
        for failed in row.together:
            self._emit(failed, Failed(code, message))
        self._release(row)

    def _fail_all(self, code: ErrorCode, message: str) -> None:
        for row in self._tell_all(code, message):
            self._release(row)

    def _tell_all(self, code: ErrorCode, message: str) -> list[Row]:
        """Before anything is given back: should that raise, nobody is left without an answer."""
        with self._lock:
            rows = list(self._rows.values())
            for row in rows:
                self._emit(row, Failed(code, message))
                self._rows.pop(row.request.id, None)
        return rows

    def _start(self, row: Row) -> None:
        try:
            self._runner.reuse.start(row)
        except Exception as error:  # noqa: BLE001 - what one prompt would take ends that prompt only
            self._fail(row, *self._failure(error, "start", 1))

    def _abandon(self, batch: Batch, error: Exception, *, computed: bool) -> None:
        """Ends the rows whose prompts were read. Those that decode lost nothing unless the forward was complete: they
        are computed again, by themselves, and end if that fails.
        """
        reason = self._failure(error, batch.phase, len(batch.rows))
        ended = [row for row in batch.rows if row.state != "decode"]
        if computed or not ended:
            ended = list(batch.rows)
        self._scheduler.decode_alone()
        for row in ended:
            self._fail(row, *reason)

    def _failure(self, error: Exception, phase: str, rows: int) -> tuple[ErrorCode, str]:
        """Takes note of what a forward or a start raised; returns what its rows are told."""
        _log.error("forward_failed", phase=phase, rows=rows, error=repr(error))
        if not isinstance(error, torch.OutOfMemoryError):
            return "engine_failed", "the engine failed on this request's batch"
        self._scheduler.compute_less()
        return "out_of_memory", "the device ran out of memory; try again with fewer tokens"

    def _release(self, row: Row) -> None:
        """The one place where a row and its peers give everything back; a second call does nothing."""
        for released in row.together:
            if released.released:
                continue
            released.released = True
            with self._lock:
                if self._rows.get(released.request.id) is released:
                    del self._rows[released.request.id]
            self._scheduler.release(released)
            self._runner.release(released)
            for active in released.take_interventions():
                active.end(self._runner.meters)
        self._sampling = None

    def _emit(self, row: Row, event: Event) -> None:
        with self._lock:
            if self._rows.get(row.request.id) is not row:
                return
            try:
                row.sink(event)
                return
            except Exception as error:  # noqa: BLE001 - a receiver that raises (its loop is closed) ends its own row only
                _log.warning("receiver_failed", id=row.request.id, error=repr(error))
                del self._rows[row.request.id]
        self._fail(row, "engine_failed", _PEER_GONE)
