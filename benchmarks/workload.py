"""What every contender of a measurement is asked to do. Equal arguments give equal work.

Token ids change with ``seed`` and nothing else does, so that a repeat is the same work and no cache can know it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Intervention:
    """A direction added, or an autoencoder that switches, at the output of block ``layer``; distinct by ``seed``."""

    kind: Literal["vector", "autoencoder"]
    layer: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, how many tokens to make greedily after it, and when it arrives (seconds from the start)."""

    prompt: tuple[int, ...]
    new_tokens: int
    arrival_s: float = 0.0
    interventions: tuple[Intervention, ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """Requests in the order of arrival.

    ``one_at_a_time`` sends each when the one before has ended, whatever its arrival; ``primer`` is done before and is
    not measured. Without ``hooks``, an engine that intervenes through hooks has them off the model for this work.
    """

    requests: tuple[Request, ...]
    one_at_a_time: bool = False
    primer: tuple[Request, ...] = ()
    hooks: bool = True

    @property
    def longest(self) -> int:
        """Positions that the longest request needs."""
        return max(len(request.prompt) + request.new_tokens for request in (*self.primer, *self.requests))

    def warm_up(self) -> Work:
        """The same prompts all at once, with two tokens after each."""
        return replace(self, requests=tuple(replace(r, arrival_s=0.0, new_tokens=2) for r in self.requests))


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """What became of a request: when it was sent and when each of its tokens was there (seconds from the start)."""

    sent_s: float
    times_s: tuple[float, ...]
    tokens: tuple[int, ...]


Intervene = Callable[[int], Sequence[Intervention]]


def nothing(_index: int) -> Sequence[Intervention]:
    """No intervention on any request."""
    return ()


def equal(count: int, prompt: int, new_tokens: int, vocab: int, seed: int = 0, intervene: Intervene = nothing) -> Work:
    """``count`` requests of one length at the same time."""
    return lengths([prompt] * count, new_tokens, vocab, seed, intervene)


def lengths(prompts: Iterable[int], new_tokens: int, vocab: int, seed: int = 0, intervene: Intervene = nothing) -> Work:
    """Requests with prompts of these lengths at the same time."""
    tokens = random.Random(f"tokens {seed}")
    return Work(
        tuple(
            Request(_ids(tokens, length, vocab), new_tokens, 0.0, tuple(intervene(index)))
            for index, length in enumerate(prompts)
        )
    )


def staggered(
    count: int,
    per_second: float,
    prompt: tuple[int, int],
    new_tokens: tuple[int, int],
    vocab: int,
    seed: int = 0,
    intervene: Intervene = nothing,
) -> Work:
    """Poisson arrivals; lengths of prompts and answers are uniform in the (inclusive) ranges."""
    shape, tokens = random.Random("shape"), random.Random(f"tokens {seed}")
    now, requests = 0.0, []
    for index in range(count):
        ids = _ids(tokens, shape.randint(*prompt), vocab)
        requests.append(Request(ids, shape.randint(*new_tokens), now, tuple(intervene(index))))
        now += shape.expovariate(per_second)
    return Work(tuple(requests))


def chats(
    count: int,
    system: int,
    tail: tuple[int, int],
    new_tokens: int,
    vocab: int,
    seed: int = 0,
    intervene: Intervene = nothing,
) -> Work:
    """Chats one after the other behind one system prompt, which a chat that is not measured has sent before."""
    shape, tokens = random.Random("shape"), random.Random(f"tokens {seed}")
    prefix = _ids(random.Random("system prompt"), system, vocab)
    requests = [
        Request(prefix + _ids(tokens, shape.randint(*tail), vocab), new_tokens, 0.0, tuple(intervene(index)))
        for index in range(count)
    ]
    primer = Request(prefix + _ids(tokens, tail[1], vocab), 2)
    return Work(tuple(requests), one_at_a_time=True, primer=(primer,))


def work_from_json(data: Mapping[str, Any]) -> Work:
    """The inverse of :func:`dataclasses.asdict` after a journey as JSON."""
    requests, primer = ([_request(request) for request in data[key]] for key in ("requests", "primer"))
    return Work(tuple(requests), bool(data["one_at_a_time"]), tuple(primer), bool(data["hooks"]))


def _request(data: Mapping[str, Any]) -> Request:
    interventions = tuple(Intervention(**intervention) for intervention in data["interventions"])
    return Request(tuple(data["prompt"]), int(data["new_tokens"]), float(data["arrival_s"]), interventions)


def _ids(source: random.Random, count: int, vocab: int) -> tuple[int, ...]:
    """Ids from 4 up: what lies below is special in the small models that others trained."""
    return tuple(source.randrange(4, vocab) for _ in range(count))
