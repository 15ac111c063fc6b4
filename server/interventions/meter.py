"""Measures what each running intervention did, without a synchronisation a step.

Shapes: K touched tokens, D width, N meter places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

_SMALLEST_NORM = 1e-12


class GateCounts(NamedTuple):
    """Tokens at which a gate was open; of those the prompt and generated ones changed; changes over all sites."""

    hits: int
    prompt_tokens: int
    generated_tokens: int
    changes: int


class MeterBank:
    """A place for each intervention of each live row, kept on the device.

    ``sums_N`` are running sums of ``|h' - h| / |h|``. For interventions with a gate ``left_N`` (int64) is its state
    (see :mod:`server.interventions.gates`) and ``counts_N4`` (int64) are :class:`GateCounts`. ``drifts_N2`` are
    sums and numbers of distances (see :mod:`mappers.drift`). Place 0 is nobody's. All are other tensors once
    :meth:`open` found no place free and doubled them.
    """

    def __init__(self, device: str | torch.device, places: int = 64) -> None:
        self.sums_N = torch.zeros(places, device=device)
        self.left_N = torch.zeros(places, dtype=torch.int64, device=device)
        self.counts_N4 = torch.zeros(places, 4, dtype=torch.int64, device=device)
        self.drifts_N2 = torch.zeros(places, 2, device=device)
        self._free = list(range(places - 1, 0, -1))

    @property
    def in_use(self) -> int:
        """Places taken; 0 when no row with interventions is live."""
        return len(self.sums_N) - 1 - len(self._free)

    def copy(self) -> tuple[Tensor, ...]:
        """All that was measured so far, for :meth:`put_back`."""
        return tuple(measured.clone() for measured in self._measured)

    def put_back(self, earlier: tuple[Tensor, ...]) -> None:
        """Forgets what was measured since; no place may have been opened meanwhile."""
        for measured, before in zip(self._measured, earlier, strict=True):
            measured.copy_(before)

    @property
    def _measured(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.sums_N, self.left_N, self.counts_N4, self.drifts_N2

    def open(self) -> int:
        """Takes a place whose sums start at zero and whose gate is closed."""
        if not self._free:
            size = len(self.sums_N)
            self.sums_N = torch.cat([self.sums_N, torch.zeros_like(self.sums_N)])
            self.left_N = torch.cat([self.left_N, torch.zeros_like(self.left_N)])
            self.counts_N4 = torch.cat([self.counts_N4, torch.zeros_like(self.counts_N4)])
            self.drifts_N2 = torch.cat([self.drifts_N2, torch.zeros_like(self.drifts_N2)])
            self._free = list(range(2 * size - 1, size - 1, -1))
        place = self._free.pop()
        for measured in self._measured:
            measured[place] = 0
        return place

    def count(self, place_K: Tensor, score_K: Tensor, open_K: Tensor, counts_K4: Tensor) -> None:
        """Adds ``counts_K4`` where a gate is open. A score that is not finite spoils the sum, as a change would."""
        self.counts_N4.index_add_(0, place_K, counts_K4 * open_K[:, None])
        self.sums_N.index_add_(0, place_K, score_K * 0)

    def restore(self, place: int, left_P: Tensor, touched: Sequence[int]) -> None:
        """Puts a gate where it stood after P earlier tokens of its row, of which ``touched`` were to be changed."""
        open_P = left_P > 0
        self.left_N[place] = left_P[-1]
        self.counts_N4[place, 0] = open_P.sum()
        self.counts_N4[place, 1] = open_P[list(touched)].sum()

    def drift(self, place_K: Tensor, distance_K: Tensor) -> None:
        """Adds how far tokens lie from what an intervention was trained on."""
        self.drifts_N2.index_add_(0, place_K, torch.stack([distance_K, torch.ones_like(distance_K)], 1))

    def mean_drift(self, place: int) -> float | None:
        """The mean of what was added; None where it is nothing, or not finite. Synchronises."""
        total, count = self.drifts_N2[place].tolist()
        return total / count if count and math.isfinite(total) else None

    def gate_counts(self, place: int) -> GateCounts:
        """What the gate of an intervention has let through. Synchronises."""
        return GateCounts(*self.counts_N4[place].tolist())

    def record(self, place_K: Tensor, before_KD: Tensor, after_KD: Tensor) -> None:
        """Adds each token's relative change to the sum of its intervention."""
        self.sums_N.index_add_(0, place_K, relative_change(before_KD, after_KD))

    def overflowed(self) -> frozenset[int]:
        """Places whose sum is not finite: an activation or its change was too large for float32. Synchronises."""
        # Only what is not finite, or very large, adds up to what is not finite: mostly one number tells.
        if math.isfinite(self.sums_N.sum().item()):
            return frozenset()
        return frozenset((~self.sums_N.isfinite()).nonzero().flatten().tolist())

    def close(self, place: int) -> float:
        """Gives the place back and returns its sum."""
        total = float(self.sums_N[place])
        self._free.append(place)
        return total


def relative_change(before_KD: Tensor, after_KD: Tensor) -> Tensor:
    """``|h' - h| / |h|`` of each token."""
    scale_K = vector_norm(before_KD, dim=-1).clamp_min_(_SMALLEST_NORM)
    change_K: Tensor = vector_norm(after_KD - before_KD, dim=-1)
    return change_K.div_(scale_K)
