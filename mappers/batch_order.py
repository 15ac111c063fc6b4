"""Which rows each training step sees: a function of seed and step alone, so that nothing has to be saved of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_SORT_WINDOW = 8
"""Batches within which rows are sorted by length: little padding, yet other neighbours in every epoch."""

_SEED_STRIDE = 1_000_003


class BatchOrder:
    """Batches of like length over rows of given lengths; every epoch has its own random order.

    A last batch that would be smaller than the others is left out of its epoch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = torch.tensor(lengths)
        self._size = min(batch_size, len(lengths))
        self._seed = seed
        self._epoch = -1
        self._batches: list[list[int]] = []

    def at(self, step: int) -> list[int]:
        """The rows of ``step`` (from 0)."""
        epoch, place = divmod(step, len(self._lengths) // self._size)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._arrange(epoch)
        return self._batches[place]

    def _arrange(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self._seed * _SEED_STRIDE + epoch)
        order = torch.randperm(len(self._lengths), generator=generator)
        windows = torch.split(order, self._size * _SORT_WINDOW)
        arranged = torch.cat([window[self._lengths[window].argsort(stable=True)] for window in windows])
        batches = torch.split(arranged, self._size)[: len(order) // self._size]
        places = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[place].tolist() for place in places]
