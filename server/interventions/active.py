"""An intervention of one live row, from its admission to its receipt."""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.interventions.catalog import ResolvedIntervention
from server.interventions.meter import MeterBank
from server.types import Receipt


@dataclass(eq=False, slots=True)
class ActiveIntervention:
    """What is applied to a row, and how many of its tokens were touched so far; with a gate the device counts them.

    ``prompt_tokens`` and ``generated_tokens`` count every position whose activations are the changed ones, also where
    keys and values were taken from an earlier computation under the same intervention; the meter knows only the others.
    """

    resolved: ResolvedIntervention
    meter: int
    prompt_tokens: int = 0
    generated_tokens: int = 0
    changes: int = 0

    @classmethod
    def begin(cls, resolved: ResolvedIntervention, meters: MeterBank) -> ActiveIntervention:
        """Opens a meter for an intervention of a row that was just admitted or changed."""
        return cls(resolved, meters.open())

    def continues(self, resolved: ResolvedIntervention) -> bool:
        """Whether ``resolved`` is the same artifact behind the same gate, perhaps with another strength."""
        mine = self.resolved
        return (mine.operation, mine.digest, mine.sites, mine.gate_mark) == (
            resolved.operation,
            resolved.digest,
            resolved.sites,
            resolved.gate_mark,
        )

    def reused(self, prompt: int, generated: int) -> None:
        """Counts touched tokens that are not computed again (see ``positions.count_active``)."""
        self.prompt_tokens += prompt
        self.generated_tokens += generated

    def touched(self, prompt: int, generated: int, sites: int) -> None:
        """Counts tokens that were just changed, at ``sites`` sites each."""
        self.prompt_tokens += prompt
        self.generated_tokens += generated
        self.changes += (prompt + generated) * sites

    def end(self, meters: MeterBank) -> Receipt:
        """Closes the meter and says what was done."""
        gated = None if self.resolved.gate is None else meters.gate_counts(self.meter)
        changes = self.changes if gated is None else gated.changes
        drift = meters.mean_drift(self.meter) if self.resolved.monitors else None
        total = meters.close(self.meter)
        change = total / changes if changes else 0.0
        return Receipt(
            kind=self.resolved.operation,
            name=self.resolved.name,
            digest=self.resolved.digest,
            sites=tuple(str(site) for site in self.resolved.sites),
            strength=self.resolved.strength,
            prompt_tokens=self.prompt_tokens if gated is None else gated.prompt_tokens,
            generated_tokens=self.generated_tokens if gated is None else gated.generated_tokens,
            mean_relative_change=change if math.isfinite(change) else 0.0,
            gate=None if self.resolved.gate_mark is None else self.resolved.gate_mark.digest,
            gate_hits=None if gated is None else gated.hits,
            drift=drift,
        )
