"""Answers that are not streamed: wait for all rows, unless the client hangs up first."""

from __future__ import annotations

import asyncio

from fastapi import Request
from starlette.requests import ClientDisconnect

from server.api.openai.generation import Choice, Generation, collect


async def run(generation: Generation, request: Request) -> list[Choice]:
    """Starts the rows and gives all choices.

    Raises what the engine raises on submission, GenerationFailed when a row fails, and ClientDisconnect when nobody
    waits for the answer any more; the rows are stopped in each case.
    """
    generation.rows.start()
    work = asyncio.create_task(collect(generation))
    hang_up = asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait((work, hang_up), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        generation.rows.close()
        work.cancel()
        hang_up.cancel()


async def _hang_up(request: Request) -> None:
    """Returns once the client is gone; the body has been read, so nothing else can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
