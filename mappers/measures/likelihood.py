"""What a model finds likely: perplexity of texts, and how far its next-token distribution is from a reference's.

Interventions are on where the call stands in a `with block_outputs(...)` of that model, or are given as callbacks.

Shapes: N loss positions of a batch, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mappers.dataset import DatasetRow
from mappers.errors import DataError
from mappers.exchanges import Exchange, read_rows, require_twins
from mappers.hooks import BlockCallback, block_outputs
from mappers.loading import LoadedModel
from mappers.losses import next_token_kl
from mappers.replies import read_replies
from mappers.sites import Site

Callbacks = Mapping[Site, BlockCallback]

_NO_CALLBACKS: Callbacks = {}


def perplexity(
    loaded: LoadedModel,
    rows: Iterable[DatasetRow],
    *,
    callbacks: Callbacks = _NO_CALLBACKS,
    batch_size: int = 32,
    max_length: int = 512,
) -> float:
    """``exp`` of the mean negative log-likelihood of a token, in nats: of the answers, and of plain texts from their
    second token on.

    Raises DataError for a row without an answer, and where no row is left.
    """
    total, count = 0.0, 0
    for exchanges in _batches(loaded, rows, batch_size, max_length):
        logits_NV = _logits(loaded, exchanges, callbacks)
        targets_N = torch.tensor([one.ids[place + 1] for one in exchanges for place in one.loss_positions])
        total += float(F.cross_entropy(logits_NV.float(), targets_N.to(logits_NV.device), reduction="sum"))
        count += len(targets_N)
    return math.exp(total / count)


def kl_to_reference(
    loaded: LoadedModel,
    reference: LoadedModel,
    rows: Iterable[DatasetRow],
    *,
    callbacks: Callbacks = _NO_CALLBACKS,
    batch_size: int = 32,
    max_length: int = 512,
) -> float:
    """Mean over answer tokens of ``KL(reference || loaded)`` of the next-token distributions, in nats.

    ``callbacks`` are on ``loaded`` alone, which may be ``reference`` itself. Raises DataError for a row without an
    answer, where no row is left, and for models that read different token ids.
    """
    require_twins(loaded, reference)
    total, count = 0.0, 0
    for exchanges in _batches(loaded, rows, batch_size, max_length):
        wanted_NV = _logits(reference, exchanges, _NO_CALLBACKS)
        total += float(next_token_kl(wanted_NV, _logits(loaded, exchanges, callbacks))) * len(wanted_NV)
        count += len(wanted_NV)
    return total / count


def _batches(
    loaded: LoadedModel, rows: Iterable[DatasetRow], batch_size: int, max_length: int
) -> Iterator[list[Exchange]]:
    """The rows as exchanges, those of like length together."""
    found: list[Exchange] = []
    for one in read_rows(loaded, rows, max_length=max_length):
        if not isinstance(one, Exchange):
            raise DataError("a row without an answer has no likelihood: give it a completion, or use text")
        found.append(one)
    if not found:
        raise DataError("no row has a token to predict: give longer texts or raise max_length")
    found.sort(key=lambda exchange: len(exchange.ids))
    for start in range(0, len(found), batch_size):
        yield found[start : start + batch_size]


def _logits(loaded: LoadedModel, exchanges: Sequence[Exchange], callbacks: Callbacks) -> Tensor:
    with torch.no_grad(), block_outputs(loaded.stack, callbacks):
        return read_replies(loaded, exchanges, ()).logits_NV
