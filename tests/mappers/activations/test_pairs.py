from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from mappers.activations.collect import collect
from mappers.activations.masks import has_text
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


def test_special_tokens_and_massive_activations_are_left_out_and_counted(
    make_llama: Callable[..., LoadedModel],
) -> None:
    source = reader(make_llama(0), Site(1))
    target = reader(make_llama(1, tokenizer="unigram", width=16), Site(2))
    whole = concatenate(list(paired_activations(source, target, "offsets", batch_size=2)))
    norms_N = whole.y_ND.norm(dim=-1)
    limit = float(norms_N.median())
    limited = replace(target, limit=limit)
    pairs = concatenate(list(paired_activations(source, limited, "offsets", batch_size=2)))
    assert (pairs.massive, pairs.special) == (int((norms_N > limit).sum()), 0)
    assert torch.equal(pairs.y_ND, whole.y_ND[norms_N <= limit])
    assert torch.equal(pairs.x_NS, whole.x_NS[norms_N <= limit])
    spoken = concatenate(list(paired_activations(source, target, "position", batch_size=2, special_tokens=False)))
    aligned = [align(a, b, "position") for a, b in zip(source.texts, target.texts, strict=True)]
    kept = [
        (row, i, j)
        for row, found in enumerate(aligned)
        for i, j in found
        if has_text(source.texts[row])[i] and has_text(target.texts[row])[j]
    ]
    assert len(spoken.x_NS) == len(kept)
    assert spoken.special == sum(map(len, aligned)) - len(kept) > 0


def test_prompt_ends_that_are_special_leave_no_pair(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    texts = [replace(render(loaded.tokenizer, DatasetRow(prompt="a")), offsets=((0, 0),) * 8)]
    side = Reader(loaded, Site(0), [replace(texts[0], ids=texts[0].ids[:8])])
    (pairs,) = paired_activations(side, side, "last", batch_size=4, special_tokens=False)
    assert (len(pairs.x_NS), pairs.special) == (0, 1)


def test_what_is_not_finite_is_never_taken_for_massive(make_llama: Callable[..., LoadedModel]) -> None:
    side = replace(reader(make_llama(0), Site(0)), limit=1e9)
    handle = side.loaded.stack.blocks[0].register_forward_hook(lambda _module, _args, output: output * float("nan"))
    pairs = concatenate(list(paired_activations(side, side, "last", batch_size=4)))
    handle.remove()
    assert len(pairs.x_NS) == len(PROMPTS)
    assert pairs.massive == 0
