"""Measures how much each running intervention changed, without a synchronisation a step.

Shapes: K touched tokens, D width, N meter places.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vector_norm

_SMALLEST_NORM = 1e-12


class MeterBank:
    """One running sum of ``|h' - h| / |h|`` for each intervention of each live row, kept on the device.

    ``sums_N`` is another tensor once :meth:`open` found no place free and doubled them.
    """

    def __init__(self, device: str | torch.device, places: int = 64) -> None:
        self.sums_N = torch.zeros(places, device=device)
        self._free = list(range(places - 1, -1, -1))

    @property
    def in_use(self) -> int:
        """Places taken; 0 when no row with interventions is live."""
        return len(self.sums_N) - len(self._free)

    def open(self) -> int:
        """Takes a place whose sum starts at zero."""
        if not self._free:
            size = len(self.sums_N)
            self.sums_N = torch.cat([self.sums_N, torch.zeros_like(self.sums_N)])
            self._free = list(range(2 * size - 1, size - 1, -1))
        place = self._free.pop()
        self.sums_N[place] = 0.0
        return place

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
