from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mappers.activations.collect import collect
from mappers.activations.masks import Mask, has_text
from mappers.dataset import DatasetRow
from mappers.errors import DataError
from mappers.loading import LoadedModel
from mappers.rendering import render
from mappers.sites import Site


def test_the_limit_is_so_many_medians_of_the_norm(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    sequences = [[5, 6, 7], [8], [], [9, 10, 11, 12]]
    (batch,) = collect(loaded, [Site(0), Site(2)], sequences, batch_size=4)
    limits = Mask(massive=3.0).norm_limits(loaded, [Site(0), Site(2)], sequences, batch_size=2)
    for site, limit in limits.items():
        assert limit == pytest.approx(3 * float(batch.real(site).norm(dim=-1).median()), rel=1e-4)
    assert set(limits) == {Site(0), Site(2)}


def test_the_median_is_taken_over_a_sample_of_many_texts(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    read: list[int] = []
    handle = loaded.stack.blocks[0].register_forward_hook(lambda _module, _args, output: read.append(len(output)))
    Mask(massive=2.0).norm_limits(loaded, [Site(0)], [[5, 6]] * 700, batch_size=64)
    handle.remove()
    assert 200 <= sum(read) <= 256


def test_without_massive_nothing_is_read_and_without_tokens_it_is_refused(
    make_llama: Callable[..., LoadedModel],
) -> None:
    loaded = make_llama(0)
    assert Mask().norm_limits(loaded, [Site(0)], [[5]], batch_size=1) == {}
    with pytest.raises(DataError, match="median norm"):
        Mask(massive=2.0).norm_limits(loaded, [Site(0)], [[], []], batch_size=1)


def test_special_tokens_have_no_text(tokenizers: dict[str, Any]) -> None:
    rendered = render(tokenizers["byte_level"], DatasetRow(prompt="the <end> fox"))
    special = set(tokenizers["byte_level"].all_special_ids)
    assert has_text(rendered) == [token not in special for token in rendered.ids]
    assert torch.tensor(has_text(rendered)).any()
