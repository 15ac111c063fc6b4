from __future__ import annotations

from collections.abc import Callable

import torch

from mappers.activations.pairs import Reader, concatenate, paired_activations
from mappers.alignment import align
from mappers.dataset import DatasetRow
from mappers.loading import LoadedModel
from mappers.rendering import render
from mappers.sites import Site

PROMPTS = ["the quick brown fox", "", "naïve café 🙂", "What is the capital of Averon?", "a"]


def reader(loaded: LoadedModel, site: Site) -> Reader:
    return Reader(loaded, site, [render(loaded.tokenizer, DatasetRow(prompt=prompt)) for prompt in PROMPTS])


def test_pairs_are_the_activations_of_the_aligned_tokens(make_llama: Callable[..., LoadedModel]) -> None:
    source = reader(make_llama(0), Site(1))
    target = reader(make_llama(1, tokenizer="unigram", width=16), Site(2))
    pairs = concatenate(list(paired_activations(source, target, "offsets", batch_size=2)))
    expected = {}
    for ours, theirs in zip(source.texts, target.texts, strict=True):
        with torch.no_grad():
            x = source.loaded.model.model(torch.tensor([ours.ids]), output_hidden_states=True).hidden_states[2][0]
            h: list[torch.Tensor] = []
            handle = target.loaded.stack.blocks[2].register_forward_hook(lambda _m, _a, out, h=h: h.append(out))
            target.loaded.model.model(torch.tensor([theirs.ids]))
            handle.remove()
        y = h[0][0] if h[0].dim() == 3 else h[0]
        for i, j in align(ours, theirs, "offsets"):
            expected[tuple(x[i].mul(1e3).round().tolist())] = y[j]
    assert len(pairs.x_NS) == sum(len(align(a, b, "offsets")) for a, b in zip(source.texts, target.texts, strict=True))
    assert (pairs.x_NS.shape[1], pairs.y_ND.shape[1]) == (32, 16)
    close = [torch.cdist(pairs.y_ND, y[None]).min() for y in expected.values()]
    assert max(close) < 1e-3


def test_the_same_model_is_paired_with_itself(make_llama: Callable[..., LoadedModel]) -> None:
    side = reader(make_llama(0), Site(0))
    for pairs in paired_activations(side, side, "offsets", batch_size=3):
        assert torch.equal(pairs.x_NS, pairs.y_ND)


def test_the_last_tokens_give_one_pair_a_text(make_llama: Callable[..., LoadedModel]) -> None:
    side = reader(make_llama(0), Site(0))
    assert len(concatenate(list(paired_activations(side, side, "last", batch_size=4))).x_NS) == len(PROMPTS)
