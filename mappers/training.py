"""Training as generators of reports: the caller prints, stores checkpoints and stops; nothing here does.

A switch is trained through the frozen upper layers of the fine-tuned model on what it then says: the loss
``KL(base || switched)`` of the next-token distributions over the answers, beside (or instead of) the squared error on
the residual stream that arXiv 2503.04429 minimises.

Shapes: M tokens, N token pairs, S source width, D target width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mappers.activations.collect import collect
from mappers.activations.pairs import Pairs
from mappers.batch_order import BatchOrder
from mappers.errors import TrainingError
from mappers.evaluation import UnexplainedVariance
from mappers.exchanges import Exchange, require_twins
from mappers.fit import Fit, StepReport
from mappers.hooks import block_outputs
from mappers.loading import LoadedModel
from mappers.losses import next_token_kl, relative_mse, top1_agreement
from mappers.modules import AffineMapper, Mapper
from mappers.replies import Replies, Teacher, read_replies
from mappers.ridge import RidgeSums
from mappers.sites import Site

_VALIDATION_BATCH = 32


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
    order = BatchOrder([len(exchange.ids) for exchange in exchanges], fit.config.batch_size, fit.config.seed)
    weights, sites = fit.config.loss, list(fit.mappers)
    teacher = Teacher(base, exchanges, sites, batch_size=fit.config.batch_size)
    while not fit.finished:
        rows = order.at(fit.step)
        said = read_replies(tuned, [exchanges[row] for row in rows], sites, fit.mappers)
        parts = _switch_losses(teacher.replies(rows), said)
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
        target = read_replies(base, batch, list(mappers))
        said = read_replies(tuned, batch, list(mappers), mappers)
        for name, value in _switch_losses(target, said).items():
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
    mapper, order = fit.mappers[site], BatchOrder([1] * len(pairs.x_NS), fit.config.batch_size, fit.config.seed)
    while not fit.finished:
        rows = torch.tensor(order.at(fit.step))
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


def _switch_losses(target: Replies, said: Replies) -> dict[str, Tensor]:
    losses = {
        "kl": next_token_kl(target.logits_NV, said.logits_NV),
        "agreement": top1_agreement(target.logits_NV, said.logits_NV),
    }
    if said.hidden:
        errors = [relative_mse(h_MD, target.hidden[site]) for site, h_MD in said.hidden.items()]
        losses["mse"] = torch.stack(errors).mean()
    return losses
