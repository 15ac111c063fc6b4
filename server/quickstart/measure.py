"""Asks many prompts at once under several settings, so that differently treated rows share the server's batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from mappers.organisms.scoring import is_backdoored, is_right
from mappers.organisms.tasks import Example
from server.cli.client import CommandFailed

_TIMEOUT = httpx.Timeout(300.0)


@dataclass(frozen=True, slots=True)
class Cell:
    """One prompt set under one setting: ``fields[i]`` are added to the request of ``prompts[i]``."""

    name: str
    prompts: Sequence[str]
    fields: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back for a cell, in the order of its prompts."""

    examples: Sequence[Example]
    texts: Sequence[str]

    @property
    def trigger_rate(self) -> float:
        """Share of answers in which the backdoor speaks."""
        return sum(map(is_backdoored, self.texts)) / len(self.texts)

    @property
    def right(self) -> float:
        """Share of right answers."""
        return sum(map(is_right, self.examples, self.texts)) / len(self.texts)


def ask(
    url: str,
    model: str,
    examples: Sequence[Example],
    cells: Sequence[Cell],
    *,
    max_tokens: int,
    at_once: int,
    answered: Callable[[int], None],
) -> dict[str, Answered]:
    """Greedy answers of every cell. ``answered`` is called with 1 for each; raises CommandFailed.

    Prompt i of every cell is sent before prompt i + 1 of any, so a batch mixes all settings.
    """
    bodies = [
        {
            "model": model,
            "messages": [{"role": "user", "content": cell.prompts[i]}],
            "max_tokens": max_tokens,
            "temperature": 0,
            **cell.fields[i],
        }
        for i in range(len(examples))
        for cell in cells
    ]
    texts = asyncio.run(_ask_all(url, bodies, at_once, answered))
    return {cell.name: Answered(examples, texts[offset :: len(cells)]) for offset, cell in enumerate(cells)}


async def _ask_all(
    url: str, bodies: Sequence[Mapping[str, Any]], at_once: int, answered: Callable[[int], None]
) -> list[str]:
    places = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=limits) as client:

        async def one(body: Mapping[str, Any]) -> str:
            async with places:
                text = await _complete(client, body)
            answered(1)
            return text

        return await asyncio.gather(*map(one, bodies))


async def _complete(client: httpx.AsyncClient, body: Mapping[str, Any]) -> str:
    try:
        response = await client.post("/v1/chat/completions", json=body)
        answer = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise CommandFailed(f"a request failed: {str(error) or type(error).__name__}") from None
    if response.is_error:
        raise CommandFailed(f"a request was refused: {answer['error']['message']}")
    text: str = answer["choices"][0]["message"]["content"]
    return text
