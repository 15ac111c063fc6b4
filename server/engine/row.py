"""One request inside the engine: the only place that holds its state. No torch."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from server.engine.request import GenerationRequest
from server.engine.text import RowText, TextCodec
from server.types import Event, GenerationInfo, TokenLogprob

if TYPE_CHECKING:
    from server.engine.kv import PromptKv, Slot
    from server.engine.prefix import PrefixPlan
    from server.interventions.active import ActiveIntervention


@dataclass(eq=False, slots=True)
class Row:
    """A request from admission to release.

    ``computed`` positions have keys and values in every layer; up to ``known_until`` the lowest ``known_layers`` have
    them. The first ``reused`` were computed for an earlier request. ``peers`` are the rows that are admitted, end and
    fail with this one; ``divergences`` are those of its scored tokens from the first of these rows (nats). It waited
    ``queued_s`` seconds from ``submitted_at`` (monotonic) until it was admitted.
    """

    request: GenerationRequest
    sink: Callable[[Event], None]
    text: RowText
    rng: random.Random
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    known_layers: int = 0
    known_until: int = 0
    reused: int = 0
    kv: PromptKv | Slot | None = None
    prefix: PrefixPlan | None = None
    state: Literal["waiting", "prefill", "decode", "score"] = "waiting"
    peers: tuple[Row, ...] = ()
    interventions: list[ActiveIntervention] = field(default_factory=list)
    ended: list[ActiveIntervention] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    submitted_at: float = field(default_factory=time.monotonic)
    queued_s: float = 0.0
    revision: int = 0
    released: bool = False

    def __post_init__(self) -> None:
        # The last token of a text says nothing about itself: it is predicted, and never read.
        self.tokens = [*self.request.prompt_ids, *self.request.scored_ids[:-1]]

    def admitted(self) -> None:
        """Notes how long the row has waited."""
        self.queued_s = time.monotonic() - self.submitted_at

    def take_interventions(self) -> list[ActiveIntervention]:
        """Everything applied so far, running and ended, for the caller to close; the row keeps nothing of it."""
        taken = [*self.interventions, *self.ended]
        self.interventions, self.ended = [], []
        return taken

    def info(self) -> GenerationInfo:
        """What others may know of it at this moment."""
        return GenerationInfo(
            id=self.request.id,
            owner=self.request.owner,
            state=self.state,
            prompt_tokens=self.prompt_len,
            completion_tokens=self.generated,
            interventions=tuple((a.resolved.name, a.resolved.strength) for a in self.interventions),
        )

    @property
    def together(self) -> tuple[Row, ...]:
        """The row itself and its peers."""
        return (self, *self.peers)

    @property
    def finite(self) -> bool:
        """Whether all that was found about its tokens is; a text may be spoilt at one position alone."""
        nan = any(math.isnan(scored.logprob) for scored in self.prompt_logprobs)
        return not nan and all(map(math.isfinite, self.divergences))

    @property
    def skipped(self) -> int:
        """Lowest layers that need not be computed for the next token."""
        return self.known_layers if self.computed < self.known_until else 0

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def generated(self) -> int:
        """Tokens behind the prompt."""
        return len(self.tokens) - self.prompt_len

    @property
    def prompt_left(self) -> int:
        """Prompt tokens not yet computed."""
        return max(self.prompt_len - self.computed, 0)


def rows_of(
    requests: Sequence[GenerationRequest], sinks: Sequence[Callable[[Event], None]], codec: TextCodec
) -> tuple[Row, ...]:
    """The rows of requests that run together."""
    rows = tuple(
        Row(
            request,
            sink,
            RowText(codec, request.prompt_ids, request.sampling.stop),
            random.Random(request.sampling.seed),
        )
        for request, sink in zip(requests, sinks, strict=True)
    )
    for row in rows:
        row.peers = tuple(peer for peer in rows if peer is not row)
    return rows
