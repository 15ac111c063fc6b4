"""What is computed at one site: rounds of groups of token rows that undergo one operation together.

Shapes: D width, K tokens of a round or a group.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from mappers.drift import DriftMonitor
from server.interventions import operations
from server.interventions.bank import MapperBank, Use
from server.interventions.meter import MeterBank
from server.types import Operation


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Tokens ``span`` of a round that undergo one operation: with a direction each, or through mappers of one shape.

    ``v_KD`` (of length 1 but for ``add``) has one row where all share a direction. ``uses`` names the mappers in the
    order of the tokens, ``place`` where in a bank they meet; ``low_K`` and ``high_K`` are for ``clamp`` alone.
    """

    operation: Operation
    rows: tuple[int, ...]
    span: slice
    strength_K: Tensor
    v_KD: Tensor | None = None
    low_K: Tensor | None = None
    high_K: Tensor | None = None
    uses: tuple[Use, ...] = ()
    place: Hashable = None

    def compute(self, h_KD: Tensor, bank: MapperBank) -> Tensor:
        """The new activations (float32) of the group's tokens."""
        if self.v_KD is None:
            if len(self.uses) == 1:
                return operations.switch(h_KD, self.uses[0].mapper, self.strength_K)
            return operations.switch(h_KD, lambda x_KD: bank.apply(self.place, self.uses, x_KD), self.strength_K)
        return operations.steer(self.operation, h_KD, self.v_KD, self.strength_K, self.low_K, self.high_K)

    def parts(self) -> tuple[Group, ...]:
        """One group for each mapper, with spans within this group: what is left to try when computing it raised."""
        parts: list[Group] = []
        first = 0
        for use in self.uses:
            span = slice(first, first + use.tokens)
            parts.append(Group(self.operation, use.rows, span, self.strength_K[span], uses=(use,)))
            first = span.stop
        return tuple(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """Prompt tokens whose distance from one distribution is measured, with the meter places of their switches."""

    monitor: DriftMonitor
    tokens_K: Tensor
    place_K: Tensor

    def take(self, h_ND: Tensor, meters: MeterBank) -> None:
        """Measures them, before any intervention at the site."""
        meters.drift(self.place_K, self.monitor.distances(h_ND.index_select(0, self.tokens_K).float()))


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """Groups of different tokens, one behind the other in ``tokens_K``, which is None where that is every token.

    ``gate_K`` are the places of their gates in the forward's mask of open gates, None where no token has a gate.
    """

    tokens_K: Tensor | None
    meter_K: Tensor
    groups: tuple[Group, ...]
    gate_K: Tensor | None = None
