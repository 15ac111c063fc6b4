from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mappers.errors import DataError
from mappers.loading import LoadedModel
from mappers.modules import MapperConfig, build_mapper
from mappers.rendering import Rendered
from mappers.sites import Site
from mappers.vectors import (
    SiteNorms,
    cosine,
    difference_in_means,
    random_vector,
    rescale,
    row_activations,
    text_activations,
    transfer_by_jacobian,
    transfer_by_pairs,
    transfer_linear,
)


def test_rows_are_read_at_the_last_token_or_on_average(make_llama: Callable[..., LoadedModel]) -> None:
    loaded, sequences = make_llama(0), [[5, 6, 7, 8], [9], [10, 11]]
    sites = [Site(0), Site(2)]
    last = row_activations(loaded, sites, sequences, position="last", batch_size=2)
    mean = row_activations(loaded, sites, sequences, position="mean", batch_size=3)
    for row, ids in enumerate(sequences):
        with torch.no_grad():
            states = loaded.model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert torch.allclose(last[Site(0)][row], states[1][0, -1], atol=1e-5)
        assert torch.allclose(mean[Site(0)][row], states[1][0].mean(0), atol=1e-5)
    assert last[Site(2)].shape == (3, 32)


@pytest.mark.parametrize("sequences", [[], [[1], []]])
def test_empty_prompts_are_refused(make_llama: Callable[..., LoadedModel], sequences: list[list[int]]) -> None:
    with pytest.raises(DataError, match="at least one token"):
        row_activations(make_llama(0), [Site(0)], sequences, position="last", batch_size=2)


def test_the_two_rules_agree_for_an_affine_map_and_drop_its_bias() -> None:
    mapper = build_mapper(MapperConfig(kind="affine", d_source=5, d_target=7))
    positive, negative = torch.randn(4, 5), torch.randn(6, 5)
    v = difference_in_means(positive, negative)
    by_pairs = transfer_by_pairs(mapper, positive, negative)
    assert torch.allclose(by_pairs, transfer_linear(mapper, v), atol=1e-6)
    assert not torch.allclose(by_pairs, mapper(v), atol=1e-3)


def test_an_autoencoder_has_no_linear_part() -> None:
    mapper = build_mapper(MapperConfig(kind="autoencoder", d_source=5, d_target=7))
    assert transfer_by_pairs(mapper, torch.randn(4, 5), torch.randn(4, 5)).shape == (7,)
    with pytest.raises(DataError, match="rule 'pairs'"):
        transfer_linear(mapper, torch.randn(5))


def test_rescaling_keeps_the_direction() -> None:
    v = torch.randn(9)
    assert float(rescale(v, 2.5).norm()) == pytest.approx(2.5)
    assert cosine(rescale(v, 2.5), v) == pytest.approx(1.0)
    with pytest.raises(DataError, match="zero"):
        rescale(torch.zeros(3), 1.0)


def test_the_random_control_has_the_norm_and_no_relation() -> None:
    v = random_vector(2000, 3.0, seed=1)
    assert float(v.norm()) == pytest.approx(3.0)
    assert torch.equal(v, random_vector(2000, 3.0, seed=1))
    assert abs(cosine(v, random_vector(2000, 3.0, seed=2))) < 0.1


def test_a_position_counts_from_the_end(make_llama: Callable[..., LoadedModel]) -> None:
    loaded, sequences = make_llama(0), [[5, 6, 7, 8], [9, 3, 4]]
    second = row_activations(loaded, [Site(1)], sequences, position=-2, batch_size=2)[Site(1)]
    cut = row_activations(loaded, [Site(1)], [ids[:-1] for ids in sequences], position="last", batch_size=2)[Site(1)]
    assert torch.allclose(second, cut, atol=1e-5)
    with pytest.raises(DataError, match="position -4"):
        row_activations(loaded, [Site(1)], sequences, position=-4, batch_size=2)


def test_site_norms_leave_the_first_of_several_tokens_out(make_llama: Callable[..., LoadedModel]) -> None:
    loaded, sequences, norms = make_llama(0), [[5, 6, 7, 8], [9], [10, 11]], SiteNorms()
    row_activations(loaded, [Site(0)], sequences, position="mean", batch_size=2, norms=norms)
    squares: list[float] = []
    for ids in sequences:
        with torch.no_grad():
            h_ND = loaded.model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
        squares += h_ND[1 if len(ids) > 1 else 0 :].square().sum(-1).tolist()
    assert len(squares) == 5
    assert norms.values() == {Site(0): pytest.approx((sum(squares) / 5) ** 0.5, rel=1e-5)}


@pytest.mark.parametrize("residual", [False, True])
def test_the_jacobian_product_is_the_slope_of_the_map(residual: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    config = MapperConfig(kind="autoencoder", d_source=6, d_target=6, residual=residual, hidden=9)
    mapper = build_mapper(config, generator=generator).double()
    with torch.no_grad():
        mapper.decoder_weight.normal_(generator=generator)
    mean, v = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    slope = (mapper(mean + 1e-7 * v) - mapper(mean - 1e-7 * v)) / 2e-7
    assert torch.allclose(transfer_by_jacobian(mapper, mean, v), slope, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(slope, mapper(v), atol=0.1)


def test_pairs_can_go_through_another_method() -> None:
    mapper = build_mapper(MapperConfig(kind="autoencoder", d_source=5, d_target=7))
    positive, negative = torch.randn(4, 5), torch.randn(4, 5)
    first = transfer_by_pairs(mapper, positive, negative, lambda ours, theirs: ours[0] - theirs[0])
    assert torch.allclose(first, mapper(positive)[0] - mapper(negative)[0])


def test_an_answer_is_read_where_it_is_predicted(make_llama: Callable[..., LoadedModel]) -> None:
    loaded, site = make_llama(0), Site(1)
    texts = [Rendered("", ids, (), (), (), answer_start=start) for ids, start in (((5, 6, 7, 8), 2), ((9, 10, 11), 2))]
    found_RD = text_activations(loaded, [site], texts, position="answer", batch_size=2)[site]
    (first,) = row_activations(loaded, [site], [(5, 6)], position="last", batch_size=1)[site]
    (second,) = row_activations(loaded, [site], [(5, 6, 7)], position="last", batch_size=1)[site]
    assert torch.allclose(found_RD[0], (first + second) / 2, atol=1e-5)
    (only,) = row_activations(loaded, [site], [(9, 10)], position="last", batch_size=1)[site]
    assert torch.allclose(found_RD[1], only, atol=1e-5)


def test_a_text_without_an_answer_has_none_to_read(make_llama: Callable[..., LoadedModel]) -> None:
    texts = [Rendered("", (5, 6), (), (), (), answer_start=start) for start in (1, None)]
    with pytest.raises(DataError, match="some have none"):
        text_activations(make_llama(0), [Site(1)], texts, position="answer", batch_size=2)
