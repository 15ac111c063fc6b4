"""One request inside the engine: the only place that holds its state. No torch."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from server.engine.request import GenerationRequest
from server.types import Event, TokenLogprob

if TYPE_CHECKING:
    from server.engine.kv import PromptKv, Slot
    from server.engine.prefix import PrefixPlan
    from server.engine.text import RowText
    from server.interventions.active import ActiveIntervention


@dataclass(eq=False, slots=True)
class Row:
    """A request from admission to release.

    ``computed`` positions have keys and values in every layer; up to ``known_until`` the lowest ``known_layers`` have
    them. The first ``reused`` were computed for an earlier request.
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
    state: Literal["waiting", "prefill", "decode"] = "waiting"
    interventions: list[ActiveIntervention] = field(default_factory=list)
    ended: list[ActiveIntervention] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    revision: int = 0
    released: bool = False

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_ids)

    def take_interventions(self) -> list[ActiveIntervention]:
        """Everything applied so far, running and ended, for the caller to close; the row keeps nothing of it."""
        taken = [*self.interventions, *self.ended]
        self.interventions, self.ended = [], []
        return taken

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def generated(self) -> int:
        """Tokens drawn so far."""
        return len(self.tokens) - self.prompt_len

    @property
    def prompt_left(self) -> int:
        """Prompt tokens not yet computed."""
        return max(self.prompt_len - self.computed, 0)
