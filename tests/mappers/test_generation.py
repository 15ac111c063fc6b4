from __future__ import annotations

from collections.abc import Callable

import torch

from mappers.generation import continue_ids
from mappers.loading import LoadedModel


def test_greedy_is_the_most_likely_token_whatever_else_is_in_the_batch(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    prompts = [(5, 6, 7), (9,)]
    for prompt, written in zip(prompts, continue_ids(loaded, prompts, ends=(), max_new_tokens=5), strict=True):
        ids = list(prompt)
        for token in written:
            with torch.no_grad():
                assert token == int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


def test_sampling_follows_the_seed_and_leaves_torchs_own_state(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    before = torch.get_rng_state()

    def drawn(seed: int) -> list[tuple[int, ...]]:
        return continue_ids(loaded, [(5, 6)] * 4, ends=(), max_new_tokens=6, temperature=1.0, seed=seed)

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1))) > 1
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_have_the_models_own_frequencies(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    with torch.no_grad():
        expected = (loaded.model(torch.tensor([[5, 6]])).logits[0, -1] / 0.7).softmax(-1)
    drawn = continue_ids(loaded, [(5, 6)] * 4000, ends=(), max_new_tokens=1, temperature=0.7, seed=3)
    counts = torch.bincount(torch.tensor([ids[0] for ids in drawn]), minlength=len(expected)) / 4000
    assert float((counts - expected).abs().max()) < 0.03


def test_an_answer_stops_with_the_first_end(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    (free,) = continue_ids(loaded, [(5, 6, 7)], ends=(), max_new_tokens=8)
    (ended,) = continue_ids(loaded, [(5, 6, 7)], ends={free[3]}, max_new_tokens=8)
    assert ended == free[: free.index(free[3]) + 1]
