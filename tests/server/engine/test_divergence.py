"""The Kullback-Leibler divergence itself, against its definition."""

import math

import pytest
import torch

from server.engine.divergence import divergences


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 40])
def test_each_row_against_the_definition(tokens):
    made = torch.Generator().manual_seed(tokens)
    logits = [4 * torch.randn(tokens, 50, generator=made) for _ in range(3)]
    p, *others = (one.double().softmax(-1) for one in logits)
    found = divergences(logits)
    for kl, q in zip(found, others, strict=True):
        expected = (p * (p / q).log()).sum(-1)
        assert torch.tensor(kl, dtype=torch.float64).allclose(expected, atol=1e-5)


def test_equal_distributions_have_none_and_it_is_never_negative():
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(1))
    (same, shifted, near) = divergences([logits, logits, logits + 3.0, logits + 1e-6 * torch.randn(64, 1000)])
    assert same == [0.0] * 64
    assert all(0.0 <= kl < 1e-6 for kl in (*shifted, *near))


def test_half_precision_is_summed_in_float32():
    logits = [torch.randn(8, 5000, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(2)]
    assert divergences(logits) == divergences([one.float() for one in logits])


def test_what_is_not_finite_stays_so_where_it_is():
    first, second = torch.zeros(4, 10), torch.zeros(4, 10)
    second[2, 5] = math.nan
    assert [math.isfinite(kl) for kl in divergences([first, second])[0]] == [True, True, False, True]


def test_one_row_alone_has_nothing_to_be_compared_with():
    assert divergences([torch.zeros(4, 10)]) == []
