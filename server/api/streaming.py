"""Answers as server-sent events: one JSON object a line, ``[DONE]`` at the end, errors inside the stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mappers.errors import InterlockError
from server.api.errors import error_body
from server.api.openai.generation import Generation
from server.types import Finished, PromptScored, TokensGenerated

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class ChunkShape(Protocol):
    """How one endpoint words the pieces of a choice; each method gives entries of a chunk's ``choices``."""

    object: str

    def opening(self, index: int) -> Sequence[Mapping[str, Any]]:
        """Sent before anything was computed."""

    def scored(self, index: int, event: PromptScored) -> Sequence[Mapping[str, Any]]:
        """The prompt's log-probabilities."""

    def piece(self, index: int, event: TokensGenerated) -> Sequence[Mapping[str, Any]]:
        """New text."""

    def closing(self, index: int, event: Finished) -> Sequence[Mapping[str, Any]]:
        """The end of the choice."""


class ReleasingStream(StreamingResponse):
    """A stream that calls ``release`` however it ends: read to the end, hung up, or cancelled before its first line."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncIterator[bytes], release: Callable[[], None]) -> None:
        super().__init__(lines, headers=_HEADERS)
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()


def stream(generation: Generation, shape: ChunkShape, *, include_usage: bool) -> ReleasingStream:
    """Starts the rows and answers with their chunks; raises what the engine raises on submission."""
    generation.rows.start()
    return ReleasingStream(_lines(generation, shape, include_usage), generation.rows.close)


async def _lines(generation: Generation, shape: ChunkShape, include_usage: bool) -> AsyncIterator[bytes]:
    try:
        async for chunk in _chunks(generation, shape, include_usage):
            yield _line(json.dumps(chunk, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    except InterlockError as error:
        # The status line is gone; openai's clients raise on an event with "error".
        yield _line(json.dumps(error_body(error, generation.head["id"])))
    yield _line("[DONE]")


async def _chunks(generation: Generation, shape: ChunkShape, include_usage: bool) -> AsyncIterator[dict[str, Any]]:
    head = {**generation.head, "object": shape.object}
    pending = {"usage": None} if include_usage else {}
    finished: dict[int, Finished] = {}
    for index in range(generation.size):
        for choice in shape.opening(index):
            yield {**head, "choices": [choice], **pending}
    async for index, event in generation.events():
        if isinstance(event, Finished):
            finished[index] = event
        last = {} if include_usage or len(finished) < generation.size else _ending(generation, finished)
        for choice in _choices(shape, index, event):
            yield {**head, "choices": [choice], **pending, **last}
    if include_usage:
        usage = generation.usage(finished)
        yield {**head, "choices": [], "usage": usage, **_ending(generation, finished)}


def _choices(shape: ChunkShape, index: int, event: object) -> Sequence[Mapping[str, Any]]:
    match event:
        case PromptScored():
            return shape.scored(index, event)
        case TokensGenerated():
            return shape.piece(index, event)
        case Finished():
            return shape.closing(index, event)
        case _:
            raise AssertionError("failures are raised by Rows.events")


def _ending(generation: Generation, finished: Mapping[int, Finished]) -> dict[str, Any]:
    return {"interlock": generation.interlock(finished)}


def _line(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
