"""Fitting a mapper of each kind on activations at hand, with the settings that the experiments compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from mappers.activations.pairs import Pairs
from mappers.fit import Fit, TrainingConfig
from mappers.losses import LossWeights
from mappers.mapper_config import MapperConfig, MapperKind
from mappers.modules import Mapper
from mappers.pair_sums import PairSums
from mappers.sites import Site
from mappers.training import train_mapper
from server.evaluation.lab import Report

_ONLY: Final = Site(0)


@dataclass(frozen=True, slots=True)
class MappingRecipe:
    """How a mapper between two models is fitted: in ``steps`` of gradients, or in closed form where there are none."""

    kind: MapperKind
    steps: int = 0
    learning_rate: float = 3e-3
    ridge: float = 1e-3
    rank: int | None = None


KINDS: Final = (
    MappingRecipe("ridge"),
    MappingRecipe("procrustes"),
    MappingRecipe("low_rank", rank=32),
    MappingRecipe("affine", steps=1500),
    MappingRecipe("autoencoder", steps=1500),
)
"""Every kind of mapper, closed forms first."""


def fit_mapper(recipe: MappingRecipe, pairs: Pairs, seed: int, report: Report) -> Mapper:
    """A mapper of the pairs' widths, frozen, on the CPU; raises TrainingError where none can be fitted."""
    d_source, d_target = pairs.x_NS.shape[1], pairs.y_ND.shape[1]
    if not recipe.steps:
        sums = PairSums(d_source, d_target)
        sums.add(pairs.x_NS, pairs.y_ND)
        return _solve(recipe, sums)
    shape = MapperConfig(kind=recipe.kind, d_source=d_source, d_target=d_target)
    config = TrainingConfig(
        loss=LossWeights(mse=1.0), steps=recipe.steps, batch_size=1024, learning_rate=recipe.learning_rate, seed=seed
    )
    fit = Fit.fresh({_ONLY: shape}, config, device=torch.device("cpu"))
    for step in train_mapper(fit, _ONLY, pairs):
        report(f"training: {recipe.kind}", step.step, step.steps)
    return fit.mappers[_ONLY].requires_grad_(False).eval()


def _solve(recipe: MappingRecipe, sums: PairSums) -> Mapper:
    if recipe.rank is not None:
        return sums.low_rank(rank=recipe.rank, ridge=recipe.ridge)
    return sums.procrustes() if recipe.kind == "procrustes" else sums.ridge(ridge=recipe.ridge)
