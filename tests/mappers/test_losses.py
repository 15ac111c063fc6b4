from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from mappers.losses import LossWeights, next_token_kl, relative_mse, top1_agreement


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


@pytest.mark.parametrize("weights", [{}, {"kl": 0}, {"kl": -1}, {"mse": float("nan")}, {"mse": 10**400}, {"fvu": 1}])
def test_weights_without_a_loss_or_a_meaning_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises((ValidationError, OverflowError)):
        LossWeights.model_validate(weights)
