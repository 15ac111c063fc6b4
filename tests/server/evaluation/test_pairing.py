from dataclasses import replace

import pytest
import torch

from mappers.activations.pairs import Pairs, Reader, concatenate, paired_activations
from mappers.dataset import DatasetRow
from mappers.loading import load_model
from mappers.organisms import organism_path
from mappers.rendering import render
from mappers.sites import Site
from server.evaluation.mapping import KINDS, fit_mapper
from server.evaluation.pairing import read_pairs

torch.set_num_threads(1)
ROWS = [DatasetRow(prompt=f"How much is {a} + 34?", completion=f"{a} + 34 = {a + 34}") for a in range(10, 40)]


def test_all_sites_at_once_are_what_each_pair_of_sites_gives_alone():
    source, target = (load_model(str(organism_path(name))) for name in ("llama-small-base", "gemma2-small-base"))
    pairs = read_pairs(source, target, ROWS)
    readers = [
        Reader(model, Site(layer), [render(model.tokenizer, row, answer=row.answer) for row in ROWS])
        for model, layer in ((source, 1), (target, 2))
    ]
    alone = concatenate(list(paired_activations(*readers, "offsets", batch_size=64)))
    found = pairs.between(Site(1), Site(2))
    assert found.x_NS.shape == alone.x_NS.shape
    torch.testing.assert_close(found.x_NS.sum(0), alone.x_NS.sum(0), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(found.y_ND.sum(0), alone.y_ND.sum(0), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(found.x_NS.T @ found.y_ND, alone.x_NS.T @ alone.y_ND, rtol=1e-3, atol=1.0)


@pytest.mark.parametrize("recipe", KINDS, ids=lambda recipe: recipe.kind)
def test_every_kind_of_mapper_is_fitted(recipe):
    generator = torch.Generator().manual_seed(0)
    x_NS = torch.randn(400, 20, generator=generator)
    y_ND = x_NS @ torch.randn(20, 24, generator=generator) + 1.0
    few = replace(recipe, steps=recipe.steps and 60, learning_rate=3e-2, rank=16 if recipe.kind == "low_rank" else None)
    mapper = fit_mapper(few, Pairs(x_NS, y_ND), 0, lambda stage, step, total: None)
    unexplained = (mapper(x_NS) - y_ND).square().sum() / (y_ND - y_ND.mean(0)).square().sum()
    assert mapper.config.kind == recipe.kind
    assert float(unexplained) < 0.6
