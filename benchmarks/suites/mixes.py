"""Which request of a workload gets which interventions."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.models import Model
from benchmarks.workload import Intervene, Intervention


def half_switched(model: Model) -> Intervene:
    """One autoencoder switch at the middle block on every other row."""
    switch = Intervention("autoencoder", model.middle)
    return lambda index: () if index % 2 else (switch,)


def all_switched(model: Model) -> Intervene:
    """One autoencoder switch at the middle block on every row."""
    switch = Intervention("autoencoder", model.middle)
    return lambda _: (switch,)


def distinct_vectors(model: Model, count: int | None = None, layers: int = 1) -> Intervene:
    """A vector of its own on every row (or one of ``count``), at the first ``layers`` blocks from the middle on."""

    def chosen(index: int) -> Sequence[Intervention]:
        seed = index if count is None else index % count
        return [Intervention("vector", (model.middle + i) % model.layers, seed) for i in range(layers)]

    return chosen


def distinct_autoencoders(model: Model) -> Intervene:
    """An autoencoder of its own on every row, at the middle block."""
    return lambda index: (Intervention("autoencoder", model.middle, index),)


def mixed(model: Model) -> Intervene:
    """Vectors at several blocks and distinct autoencoders, one on every row."""

    def chosen(index: int) -> Sequence[Intervention]:
        if index % 2:
            return (Intervention("autoencoder", model.middle, index),)
        return (Intervention("vector", index // 2 % model.layers, index),)

    return chosen
