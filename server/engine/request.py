"""What the engine is asked to do; no torch, so that the HTTP layer can say it.

A request crosses the server as :class:`GenerationRequest` and comes back as a stream of :data:`server.types.Event`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.types import SamplingParams

if TYPE_CHECKING:
    from server.interventions.catalog import ResolvedIntervention


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One row: a prompt, how to sample, and interventions whose tensors are already resident.

    With ``scored_ids`` nothing is drawn: these tokens are read behind the prompt as if they had been.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    interventions: tuple[ResolvedIntervention, ...] = ()
    owner: str | None = None
    scored_ids: tuple[int, ...] = ()

    @property
    def tokens_at_most(self) -> int:
        """Tokens of the row at its end, should nothing stop it before."""
        return len(self.prompt_ids) + len(self.scored_ids) + self.sampling.max_tokens


@dataclass(frozen=True, slots=True)
class InterventionUpdate:
    """A change of a running generation from its next token on: each part given replaces that part, None leaves it."""

    switch: tuple[ResolvedIntervention, ...] | None = None
    steering: tuple[ResolvedIntervention, ...] | None = None
