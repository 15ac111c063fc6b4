from __future__ import annotations

from collections.abc import Callable

import torch

from mappers.activations.collect import collect
from mappers.activations.pairs import Reader, concatenate, paired_activations
from mappers.alignment import align
from mappers.dataset import DatasetRow
from mappers.loading import LoadedModel
from mappers.rendering import render
from mappers.sites import Site

PROMPTS = ["the quick brown fox", "", "naïve café 🙂", "What is the capital of Averon?", "a"]


def reader(loaded: LoadedModel, site: Site) -> Reader:
    return Reader(loaded, site, [render(loaded.tokenizer, DatasetRow(prompt=prompt)) for prompt in PROMPTS])


def alone(side: Reader, row: int) -> torch.Tensor:
    (batch,) = collect(side.loaded, [side.site], [side.texts[row].ids], batch_size=1)
    return batch.real(side.site)


def test_pairs_are_the_activations_of_the_aligned_tokens(make_llama: Callable[..., LoadedModel]) -> None:
    source = reader(make_llama(0), Site(1))
    target = reader(make_llama(1, tokenizer="unigram", width=16), Site(2))
    pairs = concatenate(list(paired_activations(source, target, "offsets", batch_size=2)))
    x_parts, y_parts = [], []
    for row in sorted(range(len(PROMPTS)), key=lambda row: len(source.texts[row].ids)):
        aligned = align(source.texts[row], target.texts[row], "offsets")
        x_parts.append(alone(source, row)[[i for i, _ in aligned]])
        y_parts.append(alone(target, row)[[j for _, j in aligned]])
    assert torch.allclose(pairs.x_NS, torch.cat(x_parts), rtol=1e-4, atol=1e-4)
    assert torch.allclose(pairs.y_ND, torch.cat(y_parts), rtol=1e-4, atol=1e-4)


def test_the_same_model_is_paired_with_itself(make_llama: Callable[..., LoadedModel]) -> None:
    side = reader(make_llama(0), Site(0))
    for pairs in paired_activations(side, side, "offsets", batch_size=3):
        assert torch.equal(pairs.x_NS, pairs.y_ND)


def test_the_last_tokens_give_one_pair_a_text(make_llama: Callable[..., LoadedModel]) -> None:
    side = reader(make_llama(0), Site(0))
    assert len(concatenate(list(paired_activations(side, side, "last", batch_size=4))).x_NS) == len(PROMPTS)
