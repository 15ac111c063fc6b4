"""The rows that serve one HTTP request: started together, read through one queue, and always given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from server.engine.request import GenerationRequest
from server.errors import GenerationFailed
from server.metrics import Metrics, RowTimer
from server.types import Event, Failed, Finished, TokensGenerated

if TYPE_CHECKING:
    from server.engine.engine import Engine
    from server.tracing import Tracing


class Rows:
    """Rows of one request, numbered as given. Whoever starts them calls :meth:`close` at the end, whatever happened."""

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[GenerationRequest],
        metrics: Metrics,
        stopwatch: Callable[[], float],
        tracing: Tracing | None = None,
    ) -> None:
        self._engine = engine
        self.requests = requests
        self._metrics = metrics
        self._stopwatch = stopwatch
        self._tracing = tracing
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._running: dict[int, RowTimer] = {}

    def start(self) -> None:
        """Submits all rows or none; raises what the engine raises. To be called on the event loop."""
        loop = asyncio.get_running_loop()
        for index, request in enumerate(self.requests):
            try:
                self._engine.submit(request, partial(self._receive, loop, index))
            except BaseException:
                self.close()
                raise
            self._started(index)

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Events as they come, each with its row, until all rows have finished.

        Raises GenerationFailed when one fails; its siblings are then stopped by :meth:`close`.
        """
        while self._running:
            index, event = await self._events.get()
            self._observe(index, event)
            if isinstance(event, Failed):
                raise GenerationFailed(event.message, code=event.code)
            yield index, event

    def close(self) -> None:
        """Stops the rows that still run. May be called more than once."""
        while self._running:
            index, timer = self._running.popitem()
            self._engine.cancel(self.requests[index].id)
            timer.ended("abort")

    def _started(self, index: int) -> None:
        request = self.requests[index]
        tokens = len(request.prompt_ids)
        span = None if self._tracing is None else self._tracing.row(request.id, tokens, request.sampling)
        self._running[index] = RowTimer(self._metrics, self._stopwatch, tokens, span)

    def _receive(self, loop: asyncio.AbstractEventLoop, index: int, event: Event) -> None:
        """Called on the engine's thread."""
        loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    def _observe(self, index: int, event: Event) -> None:
        match event:
            case TokensGenerated():
                self._running[index].tokens(len(event.token_ids))
            case Finished():
                self._running.pop(index).ended(event.reason, event.receipts, event.queued_s)
            case Failed():
                self._running.pop(index).ended("error")
            case _:
                pass


class ScoringRows(Rows):
    """Rows that read one text side by side, the first of them being the reference."""

    def start(self) -> None:
        """Submits the rows as one; raises what the engine raises. To be called on the event loop."""
        loop = asyncio.get_running_loop()
        sinks = [partial(self._receive, loop, index) for index in range(len(self.requests))]
        self._engine.submit_together(self.requests, sinks)
        for index in range(len(self.requests)):
            self._started(index)
