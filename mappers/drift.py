"""Does a mapper still see what it was trained on? How far activations lie from those, computed from themselves alone.

Probabilistic PCA (Tipping and Bishop 1999): the training activations have variances ``l_1 .. l_R`` along R directions
and one variance ``s2`` along all others. The squared Mahalanobis distance under it, divided by the width, is

    ( sum_r (u_r.x)^2 / l_r  +  |x - U'U x|^2 / s2 ) / D,   x = h - mean

the second term being the reconstruction error of the R components. Its mean over the training activations is 1.

Shapes: N activations, D width, R components, Q = R + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mappers.activations.collect import collect
from mappers.errors import DataError
from mappers.hooks import block_outputs
from mappers.loading import LoadedModel
from mappers.manifest import MAX_DRIFT_COMPONENTS, DriftFacts
from mappers.modules import Mapper
from mappers.sites import Site

_SMALLEST = 1e-12
"""Share of the largest variance, so that what never varied does not divide by zero."""


@dataclass(frozen=True, slots=True, eq=False)
class DriftMonitor:
    """The distribution at one site: ``variances_Q`` are those of the R components, and last the common one."""

    mean_D: Tensor
    basis_RD: Tensor
    variances_Q: Tensor

    def distances(self, h_ND: Tensor) -> Tensor:
        """Normalised squared distance of each activation, ``(N,)``."""
        x_ND = h_ND - self.mean_D
        z_NR = x_ND @ self.basis_RD.T
        outside_N = (x_ND - z_NR @ self.basis_RD).square().sum(-1)
        inside_N = (z_NR.square() / self.variances_Q[:-1]).sum(-1)
        return (inside_N + outside_N / self.variances_Q[-1]) / x_ND.shape[-1]

    def tensors(self) -> dict[str, Tensor]:
        """By the names they are stored under."""
        return {"drift_mean": self.mean_D, "drift_basis": self.basis_RD, "drift_variances": self.variances_Q}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> DriftMonitor:
        """From what :meth:`tensors` gave."""
        return cls(tensors["drift_mean"], tensors["drift_basis"], tensors["drift_variances"])


class DriftSums:
    """Streamed float64 sums of activations: O(D^2) memory, however many there are."""

    def __init__(self, width: int) -> None:
        self.tokens = 0
        self._shift_D: Tensor | None = None
        self._sum_D = torch.zeros(width, dtype=torch.float64)
        self._products_DD = torch.zeros(width, width, dtype=torch.float64)

    def add(self, h_ND: Tensor) -> None:
        """Adds activations."""
        h = h_ND.detach().cpu().double()
        if self._shift_D is None:
            self._shift_D = h.mean(0)
        x_ND = h - self._shift_D
        self.tokens += len(h)
        self._sum_D += x_ND.sum(0)
        self._products_DD.addmm_(x_ND.T, x_ND)

    def solve(self, components: int = MAX_DRIFT_COMPONENTS) -> DriftMonitor:
        """The maximum-likelihood model, with fewer components where width or tokens have no room for more.

        Raises DataError where fewer than three activations were added.
        """
        width = len(self._sum_D)
        components = min(components, width - 1, self.tokens - 2)
        if components < 1 or self._shift_D is None:
            raise DataError(f"{self.tokens} tokens are too few to describe their distribution: add rows")
        offset_D = self._sum_D / self.tokens
        covariance_DD = self._products_DD / self.tokens - torch.outer(offset_D, offset_D)
        values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
        highest_R = values_D[width - components :].flip(0)
        common = values_D[: width - components].mean().clamp_min(_SMALLEST * float(highest_R[0]) + _SMALLEST)
        variances_Q = torch.cat([highest_R.clamp_min(float(common)), common[None]])
        basis_RD = vectors_DD[:, width - components :].T.flip(0)
        return DriftMonitor((self._shift_D + offset_D).float(), basis_RD.float().contiguous(), variances_Q.float())


def monitor_prompts(
    loaded: LoadedModel,
    mappers: Mapping[Site, Mapper],
    prompts: Sequence[Sequence[int]],
    held_out: Sequence[Sequence[int]],
    *,
    batch_size: int,
) -> dict[Site, tuple[DriftMonitor, DriftFacts]]:
    """Describes what each mapper of a switch reads of ``prompts``, and measures ``held_out`` ones (if any) by that.

    Each site is read with the mappers at lower sites on, as it is when served. Raises DataError for too few tokens.
    """
    found = {}
    lower: dict[Site, Callable[[Tensor], Tensor]] = {}
    for site in sorted(mappers):
        sums = DriftSums(loaded.stack.width)
        with block_outputs(loaded.stack, lower):
            for batch in collect(loaded, [site], prompts, batch_size=batch_size):
                sums.add(batch.real(site))
            monitor = sums.solve()
            read = collect(loaded, [site], held_out or prompts, batch_size=batch_size)
            distances_N = torch.cat([monitor.distances(batch.real(site).cpu()) for batch in read]).double()
        found[site] = (
            monitor,
            DriftFacts(
                components=len(monitor.basis_RD),
                tokens=len(distances_N),
                mean=float(distances_N.mean()),
                std=float(distances_N.std(correction=0)),
                p99=float(distances_N.sort().values[(99 * len(distances_N)) // 100]),
            ),
        )
        lower[site] = mappers[site].forward
    return found
