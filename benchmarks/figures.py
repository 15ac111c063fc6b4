"""From traces to figures, and from figures to ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from benchmarks.workload import RequestTrace

Figures = dict[str, float]

UNITS = {
    "tokens_per_second": "tokens/s",
    "decode_tokens_per_second": "decode tokens/s",
    "tokens_per_processor_second": "tokens/s of processor time",
    "ttft_p50_ms": "TTFT p50 ms",
    "ttft_p95_ms": "TTFT p95 ms",
    "itl_p50_ms": "ITL p50 ms",
    "itl_p95_ms": "ITL p95 ms",
    "peak_rss_mib": "peak RSS MiB",
    "over_weights_mib": "RSS over weights MiB",
    "ready_s": "ready s",
    "growth_mib": "RSS growth MiB",
    "seconds": "s",
    "fvu": "held-out FVU",
}
MORE_IS_BETTER = frozenset({"tokens_per_second", "decode_tokens_per_second", "tokens_per_processor_second"})


def figures(traces: Sequence[RequestTrace]) -> Figures:
    """Tokens a second, time to the first token and between tokens (p50, p95, over all requests).

    ``decode_tokens_per_second`` counts only the time in which every request decodes: from the last first token to the
    first end. It is left out where there is no such time.
    """
    if unanswered := [index for index, trace in enumerate(traces) if not trace.times_s]:
        raise ValueError(f"requests {unanswered} got no token")
    start = min(trace.sent_s for trace in traces)
    end = max(trace.times_s[-1] for trace in traces)
    first_ms = [(trace.times_s[0] - trace.sent_s) * 1000 for trace in traces]
    gaps_ms = [(later - earlier) * 1000 for trace in traces for earlier, later in pairwise(trace.times_s)]
    found = {
        "tokens_per_second": sum(len(trace.times_s) for trace in traces) / (end - start),
        "ttft_p50_ms": percentile(first_ms, 50),
        "ttft_p95_ms": percentile(first_ms, 95),
    }
    if gaps_ms:
        found |= {"itl_p50_ms": percentile(gaps_ms, 50), "itl_p95_ms": percentile(gaps_ms, 95)}
    all_started = max(trace.times_s[0] for trace in traces)
    first_ended = min(trace.times_s[-1] for trace in traces)
    if first_ended > all_started:
        made = sum(all_started < time <= first_ended for trace in traces for time in trace.times_s)
        found["decode_tokens_per_second"] = made / (first_ended - all_started)
    return found


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between the closest ranks, as NumPy's default."""
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def medians(runs: Sequence[Figures]) -> Figures:
    """The median of each figure that every run has."""
    if not runs:
        return {}
    names = [name for name in runs[0] if all(name in run for run in runs)]
    return {name: statistics.median(run[name] for run in runs) for name in names}


def paired_ratio(ours: Sequence[Figures], against: Sequence[Figures], figure: str) -> float:
    """The median over repeats of ours / theirs: repeats lie side by side, so a slow minute hits both."""
    return statistics.median(mine[figure] / theirs[figure] for mine, theirs in zip(ours, against, strict=True))


def best(candidates: Mapping[str, Figures], figure: str) -> str | None:
    """The label with the best median of ``figure``; None where nobody has it."""
    having = {label: found[figure] for label, found in candidates.items() if figure in found}
    if not having:
        return None
    return (max if figure in MORE_IS_BETTER else min)(having, key=lambda label: having[label])


def agreement(pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> float | None:
    """The share of tokens before the first difference of each pair of answers, of all tokens; None without any."""
    equal = total = 0
    for mine, other in pairs:
        total += len(mine)
        equal += next((i for i, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b), len(mine))
    return equal / total if total else None
