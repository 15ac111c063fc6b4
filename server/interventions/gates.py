"""Gates: a probe reads every token of a row, and a gated intervention acts only while its gate is open.

A gate opens at a token that scores above ``on``. With hysteresis it closes at the first later one that scores below
``off``; otherwise it stays open for a number of tokens, or for good. It reads what the block puts out, before any
intervention at that site. Its state is one number: for how many tokens, counted from the last one read, it is open.

Shapes: K tokens of all gates that read at one site, each gate's one behind the other; M gates; D width; N places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.linalg import vecdot

from mappers.probes import Probe
from mappers.sites import Site

if TYPE_CHECKING:
    from server.interventions.active import ActiveIntervention
    from server.interventions.meter import MeterBank

FOREVER = 2**62
"""Tokens that no text has."""


@dataclass(frozen=True, slots=True, order=True)
class GateMark:
    """What decides when a gate is open, over the same activations; ``digest`` is that of the probe."""

    site: Site
    digest: str
    on: float
    off: float
    hold: int


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """A gate of an intervention, its probe (``weight_D`` in float32) on the device."""

    mark: GateMark
    probe: Probe


def open_for(score_K: Tensor, on_K: Tensor, off_K: Tensor, hold_K: Tensor, before_K: Tensor, start_K: Tensor) -> Tensor:
    """For how many tokens (int64) each gate is open at least after reading token k, that one included; 0 if closed.

    ``start_K`` is the number k of the gate's first token here, ``before_K`` its state before that one.
    """
    k_K = torch.arange(len(score_K), device=score_K.device)
    # Not "above on": what is no number must open the gate, not leave it closed.
    fires_K = ~(score_K <= on_K)
    fired_K = torch.where(fires_K, k_K, -1).cummax(0).values
    closed_K = torch.where((score_K < off_K) & ~fires_K, k_K, -1).cummax(0).values
    left_K = torch.where(fired_K >= start_K, hold_K + fired_K, before_K + start_K - 1) - k_K
    return left_K.masked_fill_(closed_K >= torch.maximum(fired_K, start_K), 0).clamp_min_(0)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What the gates of one site read in a forward, and where in its mask of open gates (``span``) they say so.

    ``tokens_K`` are numbers of tokens of the forward, ``counts_K4`` what an open gate adds to the counts of its
    intervention. The last tokens of the gates are ``last_M``. ``noted`` are those whose state is wanted token by token.
    """

    rows: tuple[int, ...]
    tokens_K: Tensor
    weight_KD: Tensor
    settings_3K: Tensor
    numbers_3K: Tensor
    counts_K4: Tensor
    last_M: Tensor
    span: slice
    noted: tuple[tuple[ActiveIntervention, slice], ...]

    def read(self, h_ND: Tensor, meters: MeterBank) -> Tensor:
        """For how many tokens each gate is open after each token, ``(K,)``; keeps state and counts in ``meters``."""
        bias_K, on_K, off_K = self.settings_3K
        hold_K, start_K, place_K = self.numbers_3K
        score_K = vecdot(h_ND.index_select(0, self.tokens_K).float(), self.weight_KD) + bias_K
        left_K = open_for(score_K, on_K, off_K, hold_K, meters.left_N.index_select(0, place_K), start_K)
        meters.left_N.index_copy_(0, place_K.index_select(0, self.last_M), left_K.index_select(0, self.last_M))
        meters.count(place_K, score_K, left_K > 0, self.counts_K4)
        return left_K
