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
from mappers.ridge import RidgeSums
from mappers.sites import Site
from mappers.training import train_mapper
from server.evaluation.lab import Report

_ONLY: Final = Site(0)


@dataclass(frozen=True, slots=True)
class MappingRecipe:
    """How a mapper between two models is fitted; ``steps`` of 0 is a closed form."""

    kind: MapperKind
    steps: int = 0
    learning_rate: float = 3e-3
    ridge: float = 1e-3

    @property
    def closed(self) -> bool:
        """Whether the fit is a closed form: cheap enough for every pair of sites."""
        return self.steps == 0


KINDS: Final = (
    MappingRecipe("ridge"),
    MappingRecipe("affine", steps=1500),
    MappingRecipe("autoencoder", steps=1500),
)


def fit_mapper(recipe: MappingRecipe, pairs: Pairs, seed: int, report: Report) -> Mapper:
    """A mapper of the pairs' widths, frozen, on the CPU; raises TrainingError where none can be fitted."""
    d_source, d_target = pairs.x_NS.shape[1], pairs.y_ND.shape[1]
    if recipe.closed:
        sums = RidgeSums(d_source, d_target)
        sums.add(pairs.x_NS, pairs.y_ND)
        return sums.solve(ridge=recipe.ridge)
    shape = MapperConfig(kind=recipe.kind, d_source=d_source, d_target=d_target)
    config = TrainingConfig(
        loss=LossWeights(mse=1.0), steps=recipe.steps, batch_size=1024, learning_rate=recipe.learning_rate, seed=seed
    )
    fit = Fit.fresh({_ONLY: shape}, config, device=torch.device("cpu"))
    for step in train_mapper(fit, _ONLY, pairs):
        report(f"training: {recipe.kind}", step.step, step.steps)
    return fit.mappers[_ONLY].requires_grad_(False).eval()
