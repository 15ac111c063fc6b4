from __future__ import annotations

import math

import pytest
import torch

from mappers.errors import DataError
from mappers.evaluation import UnexplainedVariance, rate


def test_a_rate_lies_in_its_interval_which_narrows_with_more_texts() -> None:
    few = rate(["yes", "no"] * 10, lambda text: text == "yes")
    many = rate(["yes", "no"] * 500, lambda text: text == "yes")
    assert few.value == many.value == 0.5
    assert few.low < many.low < 0.5 < many.high < few.high
    assert (few.count, many.count) == (20, 1000)


def test_a_rate_is_repeatable_and_exact_at_its_ends() -> None:
    assert rate(["a", "b", "b"], "b".__eq__, seed=3) == rate(["a", "b", "b"], "b".__eq__, seed=3)
    never = rate(["a"] * 9, "b".__eq__)
    assert (never.value, never.low, never.high) == (0.0, 0.0, 0.0)


def test_a_rate_needs_texts() -> None:
    with pytest.raises(DataError, match="at least one text"):
        rate([], bool)


def test_unexplained_variance_is_that_of_the_definition_over_any_batches() -> None:
    target, y = torch.randn(30, 4) + 50.0, torch.randn(30, 4) + 50.0
    expected = float((y - target).square().sum() / (target - target.mean(0)).square().sum())
    for parts in (1, 4, 30):
        unexplained = UnexplainedVariance()
        for ours, theirs in zip(y.chunk(parts), target.chunk(parts), strict=True):
            unexplained.add(ours, theirs)
        assert unexplained.value() == pytest.approx(expected, rel=1e-4)


def test_unexplained_variance_marks() -> None:
    target = torch.randn(30, 4)
    perfect, mean = UnexplainedVariance(), UnexplainedVariance()
    perfect.add(target, target)
    mean.add(target.mean(0).expand_as(target), target)
    assert perfect.value() == 0.0
    assert mean.value() == pytest.approx(1.0, rel=1e-5)
    assert math.isnan(UnexplainedVariance().value())
