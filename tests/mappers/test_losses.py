from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from mappers.losses import (
    LossWeights,
    activation_losses,
    cosine_distance,
    next_token_kl,
    relative_mse,
    top1_agreement,
)


def test_kl_is_that_of_the_definition_and_zero_for_equal_logits() -> None:
    base, said = torch.randn(5, 11), torch.randn(5, 11)
    p, log_p, log_q = base.softmax(-1), base.log_softmax(-1), said.log_softmax(-1)
    assert float(next_token_kl(base, said)) == pytest.approx(float((p * (log_p - log_q)).sum(-1).mean()), rel=1e-5)
    assert float(next_token_kl(base, base + 3.0)) == pytest.approx(0.0, abs=1e-6)


def test_relative_mse_is_one_for_zero_and_ignores_the_scale_of_a_token() -> None:
    target = torch.randn(6, 4)
    assert float(relative_mse(torch.zeros_like(target), target)) == pytest.approx(1.0)
    scale = torch.logspace(0, 3, 6)[:, None]
    y = target + 0.1 * torch.randn(6, 4)
    assert float(relative_mse(y * scale, target * scale)) == pytest.approx(float(relative_mse(y, target)), rel=1e-5)


def test_relative_mse_stays_finite_for_a_zero_target() -> None:
    assert torch.isfinite(relative_mse(torch.ones(2, 3), torch.zeros(2, 3)))


def test_agreement_counts_equal_greedy_tokens() -> None:
    base = torch.eye(4)
    assert float(top1_agreement(base, base[[0, 1, 3, 2]])) == 0.5


@pytest.mark.parametrize(
    "weights", [{}, {"kl": 0}, {"kl": -1}, {"mse": float("nan")}, {"mse": 10**400}, {"cosine": 0}, {"fvu": 1}]
)
def test_weights_without_a_loss_or_a_meaning_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises((ValidationError, OverflowError)):
        LossWeights.model_validate(weights)


def test_cosine_sees_directions_only() -> None:
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[5.0, 0.0], [3.0, 0.0]])
    assert float(cosine_distance(x, y)) == pytest.approx(0.5)
    assert float(cosine_distance(x, -x)) == pytest.approx(2.0)


def test_the_plain_error_is_the_mean_of_squares_over_tokens_and_dimensions() -> None:
    y, target = torch.randn(6, 4), torch.randn(6, 4)
    plain = activation_losses(y, target, "plain")
    assert float(plain["mse"]) == pytest.approx(float((y - target).square().mean()))
    assert float(plain["cosine"]) == float(activation_losses(y, target)["cosine"])


def test_the_total_weighs_the_terms_and_needs_those_it_weighs() -> None:
    weights = LossWeights(kl=2.0, cosine=0.5)
    assert weights.total({"kl": 3.0, "cosine": 4.0, "mse": 100.0}) == 8.0
    with pytest.raises(KeyError):
        weights.total({"kl": 3.0})
