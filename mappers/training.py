"""Training as generators of reports: the caller prints, stores checkpoints and stops; nothing here does.

A switch is trained through the frozen upper layers of the fine-tuned model on what it then says: the loss
``KL(base || switched)`` of the next-token distributions over the answers, beside (or instead of) the squared error on
the residual stream that arXiv 2503.04429 minimises.

Shapes: B rows, T tokens, D width, N counted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mappers.activations.collect import TokenBatch, collect, keep_output, pad_batch
from mappers.activations.pairs import Pairs
from mappers.errors import TrainingError
from mappers.evaluation import UnexplainedVariance
from mappers.exchanges import Exchange, require_twins
from mappers.fit import Fit, StepReport
from mappers.hooks import block_outputs
from mappers.loading import LoadedModel
from mappers.losses import next_token_kl, relative_mse, top1_agreement
from mappers.modules import AffineMapper, Mapper
from mappers.ridge import RidgeSums
from mappers.sites import Site

_VALIDATION_BATCH = 32


@dataclass(frozen=True, slots=True)
class _Said:
    """What one model did with a batch: next-token logits at loss positions, and the residual stream at the sites."""

    logits_NV: Tensor
    hidden: dict[Site, Tensor]


def train_switch(
    fit: Fit, tuned: LoadedModel, base: LoadedModel, exchanges: Sequence[Exchange], validation: Sequence[Exchange] = ()
) -> Iterator[StepReport]:
    """Trains ``fit.mappers`` so that ``tuned`` with ``h <- f(h)`` at every site says what ``base`` says.

    Goes on from ``fit.step``; all sites are trained together. Losses are ``loss``, ``kl`` and ``mse``, validation as
    :func:`evaluate_switch`. Raises DataError for models that are not twins, TrainingError where a loss is not finite.
    """
    require_twins(tuned, base)
    if not exchanges:
        raise TrainingError("no exchange to train on: the dataset is empty or every row exceeds max_length")
    lengths = [len(exchange.ids) for exchange in exchanges]
    weights = fit.config.loss
    while not fit.finished:
        rows = fit.rows(lengths)
        parts = _switch_losses(fit.mappers, tuned, base, [exchanges[row] for row in rows])
        total = weights.kl * parts["kl"] + weights.mse * parts["mse"]
        losses = {name: float(part.detach()) for name, part in parts.items()} | fit.advance(total)
        due = fit.finished or fit.step % fit.config.validate_every == 0
        watched = evaluate_switch(fit.mappers, tuned, base, validation) if due and validation else {}
        yield StepReport(fit.step, fit.config.steps, losses, watched)


@torch.no_grad()
def evaluate_switch(
    mappers: Mapping[Site, Mapper], tuned: LoadedModel, base: LoadedModel, exchanges: Sequence[Exchange]
) -> dict[str, float]:
    """``kl`` (nats), ``mse`` and ``agreement`` (share of answer tokens both say) as means over batches' tokens.

    Empty ``mappers`` measure the fine-tuned model as it is; ``mse`` is then absent.
    """
    sums: dict[str, float] = {}
    tokens = 0
    for start in range(0, len(exchanges), _VALIDATION_BATCH):
        batch = exchanges[start : start + _VALIDATION_BATCH]
        count = sum(len(exchange.loss_positions) for exchange in batch)
        for name, value in _switch_losses(mappers, tuned, base, batch).items():
            sums[name] = sums.get(name, 0.0) + float(value) * count
        tokens += count
    return {name: value / tokens for name, value in sums.items()}


def fit_switch_by_ridge(
    tuned: LoadedModel,
    base: LoadedModel,
    sites: Sequence[Site],
    exchanges: Sequence[Exchange],
    *,
    ridge: float,
    residual: bool,
    batch_size: int,
) -> Iterator[tuple[Site, AffineMapper]]:
    """A switch in closed form, site by site from the lowest, over all tokens of the exchanges.

    Each site is fitted with the switches below it on, so that it reads what it will read when served.
    """
    require_twins(tuned, base)
    sequences = [exchange.ids for exchange in exchanges]
    fitted: dict[Site, AffineMapper] = {}
    for site in sorted(sites):
        sums = RidgeSums(tuned.stack.width, base.stack.width)
        with block_outputs(tuned.stack, {done: mapper.forward for done, mapper in fitted.items()}):
            for ours, theirs in zip(
                collect(tuned, [site], sequences, batch_size=batch_size),
                collect(base, [site], sequences, batch_size=batch_size),
                strict=True,
            ):
                sums.add(ours.real(site), theirs.real(site))
        fitted[site] = sums.solve(ridge=ridge, residual=residual).to(next(tuned.model.parameters()).device)
        yield site, fitted[site]


def train_mapper(fit: Fit, site: Site, pairs: Pairs, validation: Pairs | None = None) -> Iterator[StepReport]:
    """Trains the mapper of ``site`` on aligned activations by squared error; ``batch_size`` counts tokens.

    Loss is ``mse``; validation gives ``mse`` and ``fvu``. Raises TrainingError without pairs or for a loss that is not
    finite.
    """
    if len(pairs.x_NS) == 0:
        raise TrainingError("no token pairs to train on: use other prompts or another alignment")
    if fit.config.loss.kl > 0:
        raise TrainingError("a mapper between two models is trained on mse alone: leave kl out of loss")
    mapper, lengths = fit.mappers[site], [1] * len(pairs.x_NS)
    while not fit.finished:
        rows = torch.tensor(fit.rows(lengths))
        mse = relative_mse(mapper(pairs.x_NS[rows]), pairs.y_ND[rows])
        losses = {"mse": float(mse.detach())} | fit.advance(fit.config.loss.mse * mse)
        due = fit.finished or fit.step % fit.config.validate_every == 0
        watched = evaluate_mapper(mapper, validation) if due and validation is not None else {}
        yield StepReport(fit.step, fit.config.steps, losses, watched)


@torch.no_grad()
def evaluate_mapper(mapper: Mapper, pairs: Pairs) -> dict[str, float]:
    """``mse`` (relative) and ``fvu`` of a mapper on aligned activations it has not seen."""
    y_ND = mapper(pairs.x_NS)
    unexplained = UnexplainedVariance()
    unexplained.add(y_ND, pairs.y_ND)
    return {"mse": float(relative_mse(y_ND, pairs.y_ND)), "fvu": unexplained.value()}


def _switch_losses(
    mappers: Mapping[Site, Mapper], tuned: LoadedModel, base: LoadedModel, exchanges: Sequence[Exchange]
) -> dict[str, Tensor]:
    sequences = [exchange.ids for exchange in exchanges]
    batch = pad_batch(sequences, range(len(sequences)), next(tuned.model.parameters()).device)
    with torch.no_grad():
        kept: dict[Site, Tensor] = {}
        target = _run(base, {site: keep_output(kept, site) for site in mappers}, kept, batch, exchanges)
    changed: dict[Site, Tensor] = {}
    said = _run(tuned, {s: _replace(changed, s, mapper) for s, mapper in mappers.items()}, changed, batch, exchanges)
    losses = {
        "kl": next_token_kl(target.logits_NV, said.logits_NV),
        "agreement": top1_agreement(target.logits_NV, said.logits_NV),
    }
    if mappers:
        errors = [
            relative_mse(said.hidden[site][batch.mask_BT], target.hidden[site][batch.mask_BT]) for site in mappers
        ]
        losses["mse"] = torch.stack(errors).mean()
    return losses


def _replace(store: dict[Site, Tensor], site: Site, mapper: Mapper) -> Callable[[Tensor], Tensor]:
    def replace(h_BTD: Tensor) -> Tensor:
        store[site] = mapper(h_BTD)
        return store[site]

    return replace


def _run(
    loaded: LoadedModel,
    callbacks: Mapping[Site, Callable[[Tensor], Tensor | None]],
    hidden: dict[Site, Tensor],
    batch: TokenBatch,
    exchanges: Sequence[Exchange],
) -> _Said:
    """One forward; the head is run only at columns that some row's loss needs."""
    columns = sorted({position for exchange in exchanges for position in exchange.loss_positions})
    wanted = torch.zeros(len(exchanges), len(columns), dtype=torch.bool)
    place = {column: index for index, column in enumerate(columns)}
    for row, exchange in enumerate(exchanges):
        wanted[row, [place[position] for position in exchange.loss_positions]] = True
    model: Any = loaded.model
    with block_outputs(loaded.stack, callbacks):
        output = model(
            input_ids=batch.ids_BT,
            attention_mask=batch.mask_BT.long(),
            logits_to_keep=torch.tensor(columns, device=batch.ids_BT.device),
            use_cache=False,
        )
    return _Said(output.logits[wanted.to(output.logits.device)], hidden)
