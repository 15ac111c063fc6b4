"""Greedy answers to many prompts under many interventions, in shared batches of the serving engine.

What is measured here is therefore what is served: the same hooks, plans and isolation, on rows of every kind at once.

Shapes: D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from mappers.dataset import DatasetRow
from mappers.errors import InterlockError
from mappers.loading import LoadedModel
from mappers.modules import Mapper
from mappers.rendering import render
from mappers.sites import Site
from server.engine.loader import EngineOptions, build_engine
from server.engine.request import GenerationRequest
from server.interventions.catalog import ResolvedIntervention
from server.types import Apply, Event, Failed, Finished, Operation, SamplingParams, TokensGenerated

Done = Callable[[int], None]
"""Called with the number of answers that came since the last call."""


class AnsweringFailed(InterlockError):
    """A prompt could not be answered for a reason that is not its intervention's strength."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt (a user turn, or a whole row) and what is done to the activations while it is read and answered."""

    prompt: str | DatasetRow
    interventions: tuple[ResolvedIntervention, ...] = ()


class Answerer:
    """A row engine over ``loaded`` for the length of a ``with`` block, ``rows`` prompts in a batch.

    While it is open the model must not be used otherwise: the engine's hooks are on it and its thread computes with it.
    """

    def __init__(self, loaded: LoadedModel, *, rows: int = 64, prefix_bytes: int = 1 << 26) -> None:
        options = EngineOptions(
            max_batch=rows,
            max_waiting=rows,
            prefill_tokens=16 * rows,
            prefix_bytes=prefix_bytes,
        )
        self._loaded = loaded
        # A row is told that it has ended a moment before its place is free, one row at a time.
        self._places = 2 * rows - 1
        self._engine, _ = build_engine(loaded, options)
        self._count = 0

    def __enter__(self) -> Self:
        self._engine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.stop()

    def answers(self, asked: Sequence[Asked], *, max_tokens: int, done: Done | None = None) -> list[str]:
        """The answer to each prompt, in order; the empty text where an intervention made the model's output infinite.

        Raises AnsweringFailed where a row ended in any other error, DataError for a prompt that cannot be rendered, and
        InvalidRequest for one that leaves no room for ``max_tokens``.
        """
        ended: SimpleQueue[tuple[int, Finished | Failed]] = SimpleQueue()
        texts = [""] * len(asked)
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        running = 0
        for place, one in enumerate(asked):
            if running == self._places:
                self._take(ended, texts, done)
                running -= 1
            self._count += 1
            request = GenerationRequest(f"{self._count}", self._ids(one.prompt), sampling, one.interventions)
            self._engine.submit(request, _sink(place, texts, ended))
            running += 1
        for _ in range(running):
            self._take(ended, texts, done)
        return texts

    def _ids(self, prompt: str | DatasetRow) -> tuple[int, ...]:
        row = DatasetRow(prompt=prompt) if isinstance(prompt, str) else prompt
        return render(self._loaded.tokenizer, row).ids

    @staticmethod
    def _take(ended: SimpleQueue[tuple[int, Finished | Failed]], texts: list[str], done: Done | None) -> None:
        place, end = ended.get()
        if isinstance(end, Failed):
            if end.code != "non_finite":
                raise AnsweringFailed(f"prompt {place + 1} was not answered: {end.message}")
            texts[place] = ""
        if done is not None:
            done(1)


def switched(mappers: Mapping[Site, Mapper], strength: float = 1.0, apply: Apply | None = None) -> ResolvedIntervention:
    """A switch from mappers at hand: ``h <- (1 - s) h + s f(h)`` at every site."""
    tensors = {f"{site}.{name}": p for site, f in mappers.items() for name, p in f.state_dict().items()}
    sites = tuple(sorted(mappers))
    return ResolvedIntervention(
        "switch", "switch", _digest(tensors), sites, strength, apply or Apply(), {site: mappers[site] for site in sites}
    )


def steered(
    v_D: Tensor,
    sites: Sequence[Site],
    strength: float,
    operation: Operation = "add",
    apply: Apply | None = None,
) -> ResolvedIntervention:
    """One direction, added or ablated with ``strength`` at every site (float32, on the model's device)."""
    effects = dict.fromkeys(sorted(sites), v_D.float())
    digest = _digest({"v": v_D})
    return ResolvedIntervention(operation, "vector", digest, tuple(effects), strength, apply or Apply(), effects)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """What tells interventions apart where prefixes are reused."""
    total = sha256()
    for name, tensor in tensors.items():
        total.update(name.encode())
        total.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return total.hexdigest()


def _sink(place: int, texts: list[str], ended: SimpleQueue[tuple[int, Finished | Failed]]) -> Callable[[Event], None]:
    def sink(event: Event) -> None:
        if isinstance(event, TokensGenerated):
            texts[place] += event.text
        elif isinstance(event, Finished | Failed):
            ended.put((place, event))

    return sink
