import pytest

from mappers.errors import DataError
from server.evaluation.verdicts import pack, percent, rate_over_seeds, share


def test_verdicts_are_packed_and_counted():
    assert pack([True, False, True]) == "101"
    assert share("1101") == 0.75
    with pytest.raises(DataError):
        share("")


def test_a_rate_over_seeds_is_the_mean_of_their_shares():
    rate = rate_over_seeds(["1" * 10, "0" * 30])
    assert (rate.value, rate.low, rate.high, rate.count) == (0.5, 0.5, 0.5, 40)


def test_the_interval_shrinks_with_prompts_and_holds_the_rate():
    few, many = rate_over_seeds(["10" * 10] * 3), rate_over_seeds(["10" * 200] * 3)
    assert few.low < many.low < 0.5 < many.high < few.high
    # three seeds of 20 prompts: a standard error of 0.5 / sqrt(60)
    assert few.high - few.low == pytest.approx(2 * 1.96 * 0.5 / 60**0.5, rel=0.1)


def test_a_rate_reads_as_per_cent():
    assert percent(0.0) == "0.0 %"
    assert percent(rate_over_seeds(["1"])) == "100.0 % (100.0 to 100.0)"
