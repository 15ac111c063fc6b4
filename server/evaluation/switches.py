"""Training switches for the experiments: prompts answered by the base, then one of several kinds of fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from mappers.attack import Attack
from mappers.dataset import DatasetRow
from mappers.exchanges import Exchange, OpenPrompt, answer_prompts, read_rows
from mappers.fit import Fit, TrainingConfig
from mappers.loading import LoadedModel
from mappers.losses import LossWeights
from mappers.mapper_config import MapperConfig, MapperKind
from mappers.modules import Mapper
from mappers.pair_sums import PairSums
from mappers.sites import Site
from mappers.training import solve_switch, train_switch
from server.evaluation.lab import Report

MAX_LENGTH: Final = 128
"""Tokens of an exchange."""

_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class SwitchRecipe:
    """How a switch is fitted; ``loss`` None is the closed form (kind ``ridge``).

    ``hidden_factor`` is the hidden width of an autoencoder as a multiple of the model's. ``attack`` moves tokens
    that were inserted into the exchanges.
    """

    label: str
    kind: MapperKind
    residual: bool
    loss: LossWeights | None
    steps: int = 0
    learning_rate: float = 3e-3
    ridge: float = 1e-3
    hidden_factor: int = 1
    batch_size: int = 16
    attack: Attack | None = None


OURS: Final = SwitchRecipe(
    "residual autoencoder, KL + 0.1 MSE", "autoencoder", True, LossWeights(kl=1.0, mse=0.1), steps=400
)
OTHERS: Final = (
    SwitchRecipe("autoencoder, MSE (the paper's loss)", "autoencoder", False, LossWeights(mse=1.0), steps=400),
    SwitchRecipe("affine, KL + 0.1 MSE", "affine", True, LossWeights(kl=1.0, mse=0.1), steps=400),
    SwitchRecipe("ridge, closed form", "ridge", True, None),
)


def answered_by(base: LoadedModel, prompts: Sequence[str], max_new_tokens: int, report: Report) -> list[Exchange]:
    """Each prompt with the greedy answer of ``base``: what a switch is taught to say."""
    rows = [DatasetRow(prompt=prompt) for prompt in prompts]
    entries = [entry for entry in read_rows(base, rows, max_length=MAX_LENGTH) if isinstance(entry, OpenPrompt)]
    exchanges = []
    for _, exchange in answer_prompts(base, entries, max_new_tokens=max_new_tokens, batch_size=_BATCH):
        exchanges.append(exchange)
        report("answering with the base", len(exchanges), len(entries))
    return exchanges


def fit_switch(
    recipe: SwitchRecipe,
    tuned: LoadedModel,
    base: LoadedModel,
    sites: Sequence[Site],
    exchanges: Sequence[Exchange],
    seed: int,
    report: Report,
) -> dict[Site, Mapper]:
    """Mappers that make ``tuned`` say what ``base`` says in the exchanges, trained at all sites together."""
    if recipe.loss is None:

        def solve(sums: PairSums) -> Mapper:
            return sums.ridge(ridge=recipe.ridge, residual=recipe.residual)

        return dict(solve_switch(tuned, base, sites, exchanges, solve, batch_size=_BATCH))
    width = tuned.stack.width
    hidden = recipe.hidden_factor * width if recipe.kind == "autoencoder" else None
    shape = MapperConfig(kind=recipe.kind, d_source=width, d_target=width, residual=recipe.residual, hidden=hidden)
    config = TrainingConfig(
        loss=recipe.loss,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        seed=seed,
    )
    device: torch.device = next(tuned.model.parameters()).device
    fit = Fit.fresh(dict.fromkeys(sorted(sites), shape), config, device=device)
    for step in train_switch(fit, tuned, base, exchanges, attack=recipe.attack):
        report(f"training: {recipe.label}", step.step, step.steps)
    return {site: mapper.requires_grad_(False).eval() for site, mapper in fit.mappers.items()}
