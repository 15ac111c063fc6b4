"""Runs a model over many token sequences and gives the activations at chosen sites, batch by batch.

Shapes: B sequences of a batch, T tokens of the longest, D width, N real tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mappers.hooks import block_outputs
from mappers.loading import LoadedModel
from mappers.sites import Site


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token ids ``ids_BT`` padded on the right, ``mask_BT`` True at real tokens, and the rows' places in the input."""

    rows: tuple[int, ...]
    ids_BT: Tensor
    mask_BT: Tensor


@dataclass(frozen=True, slots=True)
class ActivationBatch:
    """Token ids and float32 activations per site; values at padding (``mask_BT`` False) mean nothing."""

    rows: tuple[int, ...]
    ids_BT: Tensor
    mask_BT: Tensor
    hidden: dict[Site, Tensor]

    def real(self, site: Site) -> Tensor:
        """The activations ``h_ND`` of the real tokens, row after row."""
        return self.hidden[site][self.mask_BT]


def pad_batch(sequences: Sequence[Sequence[int]], rows: Sequence[int], device: torch.device) -> TokenBatch:
    """The sequences at ``rows`` as one batch. Padding has id 0: it is masked, and causal models look back only."""
    longest = max(len(sequences[row]) for row in rows)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    mask_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
    for place, row in enumerate(rows):
        length = len(sequences[row])
        ids_BT[place, :length] = torch.tensor(sequences[row], dtype=torch.long)
        mask_BT[place, :length] = True
    return TokenBatch(tuple(rows), ids_BT.to(device), mask_BT.to(device))


def keep_output(store: dict[Site, Tensor], site: Site) -> Callable[[Tensor], None]:
    """A hook callback that leaves the block's output as it is and keeps it as ``store[site]``."""

    def keep(h_BTD: Tensor) -> None:
        store[site] = h_BTD

    return keep


def collect(
    loaded: LoadedModel, sites: Sequence[Site], sequences: Sequence[Sequence[int]], *, batch_size: int
) -> Iterator[ActivationBatch]:
    """One forward a batch for all ``sites``, without the head; batches hold sequences of like length, short ones first.

    Empty sequences are passed over. Raises ArtifactMismatch for a site the model does not have.
    """
    order = sorted((row for row in range(len(sequences)) if sequences[row]), key=lambda row: len(sequences[row]))
    for start in range(0, len(order), batch_size):
        yield read_sites(loaded, sites, sequences, order[start : start + batch_size])


def read_sites(
    loaded: LoadedModel, sites: Sequence[Site], sequences: Sequence[Sequence[int]], rows: Sequence[int]
) -> ActivationBatch:
    """One forward over the sequences at ``rows``, none of them empty; errors as for :func:`collect`."""
    batch = pad_batch(sequences, rows, next(loaded.model.parameters()).device)
    hidden: dict[Site, Tensor] = {}
    callbacks = {site: keep_output(hidden, site) for site in sites}
    backbone: Any = loaded.model.base_model
    with torch.no_grad(), block_outputs(loaded.stack, callbacks):
        backbone(input_ids=batch.ids_BT, attention_mask=batch.mask_BT.long(), use_cache=False)
    floats = {site: h_BTD.float() for site, h_BTD in hidden.items()}
    return ActivationBatch(batch.rows, batch.ids_BT, batch.mask_BT, floats)
