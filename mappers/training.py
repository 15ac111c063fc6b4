"""Training as generators of reports: the caller prints, stores checkpoints and stops; nothing here does.

A switch is trained through the frozen upper layers of the fine-tuned model on what it then says: the loss
``KL(base || switched)`` of the next-token distributions over the answers, beside (or instead of) the squared error on
the residual stream that arXiv 2503.04429 minimises.

Shapes: M tokens, N token pairs, S source width, D target width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mappers.activations.collect import collect
from mappers.activations.pairs import Pairs
from mappers.attack import Attack, attacked_kl
from mappers.batch_order import BatchOrder
from mappers.errors import TrainingError
from mappers.evaluation import UnexplainedVariance
from mappers.exchanges import Exchange, require_twins
from mappers.fit import Fit, StepReport
from mappers.hooks import block_outputs
from mappers.loading import LoadedModel
from mappers.losses import MseForm, activation_losses, next_token_kl, top1_agreement
from mappers.modules import Mapper
from mappers.pair_sums import PairSums
from mappers.replies import Replies, Teacher, read_replies
from mappers.sites import Site

_VALIDATION_BATCH = 32
_VALIDATION_TOKENS = 65_536


def train_switch(
    fit: Fit,
    tuned: LoadedModel,
    base: LoadedModel,
    exchanges: Sequence[Exchange],
    validation: Sequence[Exchange] = (),
    *,
    attack: Attack | None = None,
) -> Iterator[StepReport]:
    """Trains ``fit.mappers`` so that ``tuned`` with ``h <- f(h)`` at every site says what ``base`` says.

    Goes on from ``fit.step``; all sites are trained together. Losses are ``loss``, ``kl``, ``mse``, ``cosine`` and
    ``agreement``, validation as :func:`evaluate_switch`. With an ``attack`` on the exchanges' inserted tokens, ``kl``
    is the sum of that of the prompts as they are and of the ``attacked`` ones. Once the reports are exhausted, the
    mappers are final (those of the best validation, where there is a ``patience``). Raises DataError for models that
    are not twins, TrainingError where a loss is not finite.
    """
    require_twins(tuned, base)
    if not exchanges:
        raise TrainingError("no exchange to train on: the dataset is empty or every row exceeds max_length")
    config, sites = fit.config, list(fit.mappers)
    order = BatchOrder([len(exchange.ids) for exchange in exchanges], config.batch_size, config.seed)
    with _precision(fit):
        teacher = Teacher(base, exchanges, sites, batch_size=config.batch_size)

    def terms(rows: list[int]) -> dict[str, Tensor]:
        chosen, target = [exchanges[row] for row in rows], teacher.replies(rows)
        losses = _switch_losses(target, read_replies(tuned, chosen, sites, fit.mappers), config.loss.mse_form)
        if attack is not None:
            attacked = attacked_kl(tuned, fit.mappers, chosen, target, attack)
            losses |= {"kl": losses["kl"] + attacked, "attacked": attacked.detach()}
        return losses

    def validate() -> dict[str, float]:
        return evaluate_switch(fit.mappers, tuned, base, validation, mse_form=config.loss.mse_form)

    return run_steps(fit, order, terms, validate if validation else None)


@torch.no_grad()
def evaluate_switch(
    mappers: Mapping[Site, Mapper],
    tuned: LoadedModel,
    base: LoadedModel,
    exchanges: Sequence[Exchange],
    *,
    mse_form: MseForm = "relative",
) -> dict[str, float]:
    """``kl`` (nats), ``mse``, ``cosine`` and ``agreement`` (share of answer tokens both say), means over answer tokens.

    Empty ``mappers`` measure the fine-tuned model as it is; ``mse`` and ``cosine`` are then absent.
    """
    sums: dict[str, float] = {}
    tokens = 0
    for start in range(0, len(exchanges), _VALIDATION_BATCH):
        batch = exchanges[start : start + _VALIDATION_BATCH]
        count = sum(len(exchange.loss_positions) for exchange in batch)
        target = read_replies(base, batch, list(mappers))
        said = read_replies(tuned, batch, list(mappers), mappers)
        for name, value in _switch_losses(target, said, mse_form).items():
            sums[name] = sums.get(name, 0.0) + float(value) * count
        tokens += count
    return {name: value / tokens for name, value in sums.items()}


def solve_switch(
    tuned: LoadedModel,
    base: LoadedModel,
    sites: Sequence[Site],
    exchanges: Sequence[Exchange],
    solve: Callable[[PairSums], Mapper],
    *,
    batch_size: int,
) -> Iterator[tuple[Site, Mapper]]:
    """A switch in closed form (``solve``), site by site from the lowest, over all tokens of the exchanges.

    Each site is fitted with the switches below it on, so that it reads what it will read when served.
    """
    require_twins(tuned, base)
    sequences = [exchange.ids for exchange in exchanges]
    fitted: dict[Site, Mapper] = {}
    for site in sorted(sites):
        sums = PairSums(tuned.stack.width, base.stack.width)
        with block_outputs(tuned.stack, {done: mapper.forward for done, mapper in fitted.items()}):
            for ours, theirs in zip(
                collect(tuned, [site], sequences, batch_size=batch_size),
                collect(base, [site], sequences, batch_size=batch_size),
                strict=True,
            ):
                sums.add(ours.real(site), theirs.real(site))
        fitted[site] = solve(sums).to(next(tuned.model.parameters()).device)
        yield site, fitted[site]


def train_mapper(fit: Fit, site: Site, pairs: Pairs, validation: Pairs | None = None) -> Iterator[StepReport]:
    """Trains the mapper of ``site`` on aligned activations; ``batch_size`` counts token pairs.

    Losses are ``loss``, ``mse`` and ``cosine``; validation as :func:`evaluate_mapper`. Once the reports are exhausted,
    the mapper is final, as with :func:`train_switch`. Raises TrainingError without pairs, for a weight on ``kl``, or
    for a loss that is not finite.
    """
    config, mapper = fit.config, fit.mappers[site]
    if len(pairs.x_NS) == 0:
        raise TrainingError("no token pairs to train on: use other prompts or another alignment")
    if config.loss.kl > 0:
        raise TrainingError("a mapper between two models is trained on activations alone: leave kl out of loss")
    device = next(mapper.parameters()).device

    def terms(rows: list[int]) -> dict[str, Tensor]:
        chosen = torch.tensor(rows)
        y_ND = mapper(pairs.x_NS[chosen].to(device))
        return activation_losses(y_ND, pairs.y_ND[chosen].to(device), config.loss.mse_form)

    def validate(held_out: Pairs) -> dict[str, float]:
        return evaluate_mapper(mapper, held_out, mse_form=config.loss.mse_form)

    order = BatchOrder([1] * len(pairs.x_NS), config.batch_size, config.seed)
    return run_steps(fit, order, terms, None if validation is None else lambda: validate(validation))


@torch.no_grad()
def evaluate_mapper(mapper: Mapper, pairs: Pairs, *, mse_form: MseForm = "relative") -> dict[str, float]:
    """``mse``, ``cosine`` (distance) and ``fvu`` of a mapper on aligned activations it has not seen."""
    device = next(mapper.parameters()).device
    unexplained, sums = UnexplainedVariance(), {"mse": 0.0, "cosine": 0.0}
    chunks = (torch.split(side, _VALIDATION_TOKENS) for side in (pairs.x_NS, pairs.y_ND))
    for x_NS, target_ND in zip(*chunks, strict=True):
        y_ND = mapper(x_NS.to(device)).cpu()
        unexplained.add(y_ND, target_ND)
        for name, value in activation_losses(y_ND, target_ND, mse_form).items():
            sums[name] += float(value) * len(x_NS) / len(pairs.x_NS)
    return sums | {"fvu": unexplained.value()}


def run_steps(
    fit: Fit,
    order: BatchOrder,
    terms: Callable[[list[int]], dict[str, Tensor]],
    validate: Callable[[], dict[str, float]] | None,
) -> Iterator[StepReport]:
    """Takes ``fit`` to its end: ``terms`` gives the loss terms of a batch of rows, ``validate`` what is watched.

    Once the reports are exhausted, the mappers are final. Raises TrainingError for a patience without validation, or
    for a loss that is not finite.
    """
    if fit.config.patience is not None and validate is None:
        raise TrainingError("patience needs validation data: hold some out, or leave patience out")

    def in_precision(rows: list[int]) -> dict[str, Tensor]:
        with _precision(fit):
            return terms(rows)

    while not fit.finished:
        losses = fit.advance(in_precision(rows) for rows in fit.batches(order))
        watched = fit.judge(validate()) if validate is not None and fit.validation_due else {}
        yield StepReport(fit.step, fit.config.steps, losses, watched)
    fit.settle()


def _precision(fit: Fit) -> torch.autocast:
    device = next(next(iter(fit.mappers.values())).parameters()).device
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fit.config.mixed_precision)


def _switch_losses(target: Replies, said: Replies, mse_form: MseForm) -> dict[str, Tensor]:
    losses = {
        "kl": next_token_kl(target.logits_NV, said.logits_NV),
        "agreement": top1_agreement(target.logits_NV, said.logits_NV),
    }
    if said.hidden:
        sites = [activation_losses(h_MD, target.hidden[site], mse_form) for site, h_MD in said.hidden.items()]
        losses |= {name: torch.stack([site[name] for site in sites]).mean() for name in sites[0]}
    return losses
