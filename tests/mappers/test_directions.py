"""Directions on data whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mappers.directions import differing_tokens, logistic_direction, principal_direction
from mappers.errors import DataError
from mappers.vectors import cosine, difference_in_means


def sides(seed: int = 0, rows: int = 60, width: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positive and negative rows that differ by 3 along one unit direction, and by noise that pairs share."""
    generator = torch.Generator().manual_seed(seed)
    truth = F.normalize(torch.randn(width, generator=generator), dim=0)
    shared = 5 * torch.randn(rows, width, generator=generator)
    positive = shared + 3 * truth + 0.3 * torch.randn(rows, width, generator=generator)
    return positive, shared, truth


def test_the_principal_component_of_paired_differences_is_what_tells_pairs_apart():
    positive, negative, truth = sides()
    v = principal_direction(positive, negative)
    assert cosine(v, truth) > 0.99
    assert float(v.norm()) == pytest.approx(3.0, abs=0.2)
    assert cosine(principal_direction(negative, positive), truth) < -0.99


def test_a_component_of_more_spread_than_step_is_still_the_first():
    generator = torch.Generator().manual_seed(1)
    negative = torch.zeros(40, 3)
    positive = torch.stack([torch.full((40,), 0.5), 4 * torch.randn(40, generator=generator), torch.zeros(40)], dim=1)
    v = principal_direction(positive, negative)
    assert abs(float(F.normalize(v, dim=0)[1])) > 0.99
    assert float(v @ positive.mean(0)) > 0


def test_the_principal_component_needs_pairs():
    with pytest.raises(DataError, match="got 3 and 2"):
        principal_direction(torch.randn(3, 4), torch.randn(2, 4))
    with pytest.raises(DataError, match="project alike"):
        principal_direction(torch.zeros(3, 4), torch.zeros(3, 4))


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_the_logistic_direction_is_where_the_penalised_loss_has_no_slope(l2: float):
    positive, negative, _ = sides(rows=20)
    negative = negative[:13]
    v = logistic_direction(positive, negative, l2=l2)
    x = torch.cat([positive, negative]).double()
    x = x - x.mean(0)
    x = x / x.square().sum(1).mean().sqrt()
    label = torch.tensor([1.0] * 20 + [0.0] * 13).double()
    weight = torch.tensor([0.5 / 20] * 20 + [0.5 / 13] * 13).double()
    w, b = (
        torch.zeros(12, dtype=torch.float64, requires_grad=True),
        torch.zeros(1, dtype=torch.float64, requires_grad=True),
    )
    optimiser = torch.optim.LBFGS([w, b], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = weight @ F.binary_cross_entropy_with_logits(x @ w + b, label, reduction="none") + l2 / 2 * w @ w
        value.backward()
        return value

    optimiser.step(loss)
    assert cosine(v.double(), w.detach()) == pytest.approx(1.0, abs=1e-6)
    assert float(v @ difference_in_means(positive, negative)) == pytest.approx(float(v @ v), rel=1e-4)


def test_the_probe_looks_past_what_both_sides_vary_in():
    positive, negative, truth = sides(rows=400)
    assert cosine(logistic_direction(positive, negative, l2=1e-4), truth) > 0.9


def test_the_probe_works_with_fewer_rows_than_dimensions_and_is_repeatable():
    positive, negative, _ = sides(rows=5, width=300)
    v = logistic_direction(positive, negative, l2=1e-2)
    assert torch.equal(v, logistic_direction(positive, negative, l2=1e-2))
    assert float((positive @ v).min()) > float((negative @ v).mean())
    with pytest.raises(DataError, match="same activation"):
        logistic_direction(torch.ones(3, 4), torch.ones(2, 4), l2=1e-2)


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        ([1, 7, 8, 2, 3], [1, 5, 6, 2, 3], ([1, 2], [1, 2])),
        ([1, 7, 8, 9, 2], [1, 5, 2], ([3], [1])),
        ([1, 7, 2], [1, 5, 6, 9, 2], ([1], [3])),
        ([7, 1], [5, 1], ([0], [0])),
        ([1, 7], [1, 5], ([1], [1])),
        ([4, 4, 7], [4, 4, 4], ([2], [2])),
    ],
)
def test_tokens_of_a_pair_are_matched_where_it_differs(positive, negative, expected):
    assert tuple(map(list, differing_tokens(positive, negative))) == expected


@pytest.mark.parametrize(("positive", "negative"), [([9, 1, 2], [1, 2]), ([1, 2], [1, 2]), ([1, 1], [1, 1, 1])])
def test_a_pair_without_matched_tokens_is_refused(positive, negative):
    with pytest.raises(DataError, match="one of them has none"):
        differing_tokens(positive, negative)
