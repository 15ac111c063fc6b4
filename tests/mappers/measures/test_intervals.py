import pytest

from mappers.errors import DataError
from mappers.measures.intervals import mean_over_seeds, paired_difference


def test_pairs_that_differ_alike_leave_no_doubt_however_the_scores_vary() -> None:
    first = [float(value) for value in range(50)]
    second = [value - 2 for value in first]

    estimate = paired_difference(first, second)

    assert (estimate.value, estimate.low, estimate.high, estimate.count) == (2.0, 2.0, 2.0, 50)


def test_an_interval_has_the_width_of_the_normal_approximation() -> None:
    scores = [0.0, 1.0] * 200

    estimate = mean_over_seeds([scores], resamples=5000)

    assert estimate.value == 0.5
    assert (estimate.low, estimate.high) == (pytest.approx(0.451, abs=0.008), pytest.approx(0.549, abs=0.008))
    assert estimate == mean_over_seeds([scores], resamples=5000)


def test_seeds_that_disagree_widen_the_interval() -> None:
    agreeing = mean_over_seeds([[0.5] * 100] * 3)
    disagreeing = mean_over_seeds([[0.2] * 100, [0.5] * 100, [0.8] * 100])

    assert (agreeing.low, agreeing.high) == (0.5, 0.5)
    assert disagreeing.low < 0.35 < disagreeing.value < 0.65 < disagreeing.high
    assert disagreeing.count == 300


def test_missing_scores_are_refused() -> None:
    with pytest.raises(DataError, match="at least one score"):
        mean_over_seeds([[1.0], []])
    with pytest.raises(DataError, match="got 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])
