"""What memory the training of a switch takes, estimated and compared with what is free before any weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from math import ceil
from typing import Any

from mappers.dataset import DatasetRow
from mappers.exchanges import Exchange, read_rows
from mappers.loading import LoadedModel
from mappers.replies import TEACHER_CACHE_BYTES
from server.jobs.context import JobContext
from server.jobs.handlers.fitting import mapper_config
from server.jobs.specs.fits import CLOSED_FORMS, TrainSwitch

_VALIDATION_BATCH = 32
_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """The largest batch: ``rows``, each padded to ``length`` tokens, ``answer`` of which are predicted."""

    rows: int
    length: int
    answer: int


def require_memory(job: JobContext, parameters: TrainSwitch, rows: Sequence[DatasetRow]) -> None:
    """Raises OutOfMemory where too little is free, and as :func:`mappers.loading.sketch_model` does."""
    tuned = job.sketch(job.order.served)
    needed = estimate(tuned, parameters, largest_batch(tuned, parameters, rows), len(rows))
    remedy = "set a smaller batch_size or max_length, name fewer sites, or free memory"
    job.require_memory(needed, "training the switch", remedy)


def largest_batch(tuned: LoadedModel, parameters: TrainSwitch, rows: Sequence[DatasetRow]) -> Batch:
    """A batch of the longest rows by characters, answers left open being as long as they may become."""
    count = min(max(parameters.batch_size, _VALIDATION_BATCH), len(rows))
    longest = nlargest(count, rows, key=lambda row: len(row.model_dump_json()))
    length = answer = 0
    for entry in read_rows(tuned, longest, max_length=parameters.max_length):
        answered = isinstance(entry, Exchange)
        new = 0 if answered else parameters.max_new_tokens
        end = min(len(entry.ids) + new, parameters.max_length)
        answer = max(answer, len(entry.loss_positions) if isinstance(entry, Exchange) else new)
        length = max(length, end)
    if parameters.augment is not None:
        length = min(length + parameters.augment.tokens, parameters.max_length)
    return Batch(min(parameters.batch_size, len(rows)), length, answer)


def estimate(tuned: LoadedModel, parameters: TrainSwitch, batch: Batch, rows: int) -> int:
    """Bytes that training takes at its peak, beyond what the process has before models are loaded.

    With P parameters of a model, e bytes each, L blocks above the lowest site, D width, F width of the MLP, V
    vocabulary, B rows of T tokens of which A are predicted, S sites and Q parameters of a mapper:

    * ``2 P e``: the served model and its base, which is its twin;
    * ``24 Q S``: mappers in float32, their gradients, Adam's two moments, a copy for the best validation and one for a
      checkpoint;
    * ``32 B A V``: eight float32 arrays of logits: both models' logits, their log-probabilities, and the divergence
      with its intermediate, gradient and the gradient of the logits; 16 B A V where nothing is trained by gradients or
      the loss has no ``kl``;
    * ``L B T (16 D + 4 F) e``: what backward needs of each block through which the gradient goes: inputs and outputs of
      two norms in float32, queries, keys and values before and after rotation, attention, and gate, up, activation and
      product of the MLP. Blocks below the lowest site keep nothing, so this is one block's for a closed form;
    * ``4 S B T (4 D + 2 H)``: per site both models' residual stream, the mapper's output and its gradient, and its
      hidden layer of H units;
    * the base's replies to all rows, kept up to 256 MiB.

    An attack runs a second forward beside the first one's, through all blocks. Validation batches have 32 rows without
    gradients. Attention scores are not counted: fused attention keeps none. Compared with measured peaks in
    ``docs/jobs.md``.
    """
    model: Any = tuned.model
    config = model.config.get_text_config()
    stored = sum(parameter.nbytes for parameter in tuned.model.parameters())
    element = next(tuned.model.parameters()).element_size()
    width, sites, vocabulary = tuned.stack.width, len(parameters.sites), int(config.vocab_size)
    shape = mapper_config(parameters, width, width)
    trained, attacked = parameters.mapper not in CLOSED_FORMS, parameters.attack is not None
    lowest = -1 if attacked else min(site.layer for site in parameters.sites)
    kept_blocks = max(tuned.stack.layers - 1 - lowest, 1) if trained else 1
    passes = 2 if attacked else 1
    tokens = batch.rows * batch.length

    mappers = 6 * _FLOAT32 * sites * shape.parameter_count
    block = (16 * width + 4 * int(getattr(config, "intermediate_size", None) or 4 * width)) * element
    at_sites = _FLOAT32 * sites * (4 * width + 2 * (shape.hidden_width if shape.kind == "autoencoder" else 0))
    copies = 8 if trained and parameters.loss.kl > 0 else 4
    training = passes * (
        copies * _FLOAT32 * batch.rows * batch.answer * vocabulary + kept_blocks * tokens * block + tokens * at_sites
    )
    validation_rows = min(_VALIDATION_BATCH, ceil(rows * parameters.validation_fraction))
    validation = validation_rows * (4 * _FLOAT32 * batch.answer * vocabulary + batch.length * (block + at_sites))
    replies = _FLOAT32 * rows * (batch.answer * vocabulary + batch.length * width * sites) if trained else 0
    return 2 * stored + mappers + max(training, validation) + min(replies, TEACHER_CACHE_BYTES)
