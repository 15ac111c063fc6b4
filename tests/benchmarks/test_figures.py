from __future__ import annotations

import numpy as np
import pytest

from benchmarks.figures import agreement, best, figures, medians, paired_ratio, percentile
from benchmarks.workload import RequestTrace


def test_figures_of_two_requests() -> None:
    found = figures([RequestTrace(0.0, (1.0, 2.0, 4.0), (1, 2, 3)), RequestTrace(0.5, (2.5, 3.0), (4, 5))])
    assert found["tokens_per_second"] == pytest.approx(5 / 4)
    assert found["ttft_p50_ms"] == pytest.approx(1500)
    assert found["ttft_p95_ms"] == pytest.approx(1950)
    assert found["itl_p50_ms"] == pytest.approx(1000)
    # From 2.5, when both decode, to 3.0, when the first ends: one token.
    assert found["decode_tokens_per_second"] == pytest.approx(2)


def test_figures_of_single_tokens_have_no_gaps() -> None:
    assert set(figures([RequestTrace(0.0, (1.0,), (1,))])) == {"tokens_per_second", "ttft_p50_ms", "ttft_p95_ms"}


def test_a_request_without_a_token_is_no_figure() -> None:
    with pytest.raises(ValueError, match=r"\[1\] got no token"):
        figures([RequestTrace(0.0, (1.0,), (1,)), RequestTrace(0.0, (), ())])


@pytest.mark.parametrize("percent", [0, 50, 95, 100])
def test_percentile_is_numpys(percent: float) -> None:
    values = [5.0, 1.0, 9.0, 2.0, 2.5]
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_medians_keep_what_every_run_has() -> None:
    assert medians([{"a": 1, "b": 1}, {"a": 3}, {"a": 2, "b": 5}]) == {"a": 2}
    assert medians([]) == {}


def test_a_paired_ratio_is_not_moved_by_a_slow_minute() -> None:
    ours, theirs = [{"x": 20.0}, {"x": 2.0}, {"x": 22.0}], [{"x": 10.0}, {"x": 1.0}, {"x": 10.0}]
    assert paired_ratio(ours, theirs, "x") == 2.0


def test_best_knows_which_figures_should_be_small() -> None:
    candidates = {"a": {"tokens_per_second": 2.0, "ttft_p95_ms": 3.0}, "b": {"tokens_per_second": 1.0}, "c": {}}
    assert best(candidates, "tokens_per_second") == "a"
    assert best({"a": {"ttft_p95_ms": 3.0}, "b": {"ttft_p95_ms": 1.0}}, "ttft_p95_ms") == "b"
    assert best(candidates, "peak_rss_mib") is None


def test_agreement_counts_up_to_the_first_difference() -> None:
    assert agreement([((1, 2, 3), (1, 9, 3)), ((4,), (4,))]) == 0.5
    assert agreement([]) is None
