from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mappers.activations.collect import collect
from mappers.errors import ArtifactMismatch
from mappers.loading import LoadedModel
from mappers.sites import Site


def test_padded_batches_give_what_single_rows_give(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    sequences = [[5, 6, 7, 8, 9], [10], [], [11, 12, 13], [0, 0]]
    seen: dict[int, torch.Tensor] = {}
    for batch in collect(loaded, [Site(1)], sequences, batch_size=2):
        assert batch.hidden[Site(1)].dtype == torch.float32
        lengths = batch.mask_BT.sum(1).tolist()
        assert lengths == [len(sequences[row]) for row in batch.rows]
        parts = batch.real(Site(1)).split(lengths)
        seen.update(zip(batch.rows, parts, strict=True))
    assert sorted(seen) == [0, 1, 3, 4]
    for row, h_ND in seen.items():
        with torch.no_grad():
            expected = loaded.model.model(torch.tensor([sequences[row]]), output_hidden_states=True).hidden_states[2][0]
        assert torch.allclose(h_ND, expected, atol=1e-5)


def test_one_forward_serves_all_sites_and_the_head_never_runs(make_llama: Callable[..., LoadedModel]) -> None:
    loaded, calls = make_llama(0), []
    handles = [
        loaded.model.lm_head.register_forward_pre_hook(lambda *_: calls.append("head")),
        loaded.stack.blocks[0].register_forward_pre_hook(lambda *_: calls.append("block")),
    ]
    batches = list(collect(loaded, [Site(0), Site(2)], [[4, 5]] * 3, batch_size=2))
    for handle in handles:
        handle.remove()
    assert calls == ["block", "block"]
    assert all(set(batch.hidden) == {Site(0), Site(2)} for batch in batches)


def test_a_missing_site_is_refused_and_leaves_no_hook(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    with pytest.raises(ArtifactMismatch, match="layer 3 does not exist"):
        next(collect(loaded, [Site(0), Site(3)], [[4]], batch_size=1))
    assert not any(block._forward_hooks for block in loaded.stack.blocks)
