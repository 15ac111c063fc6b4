"""One long row among short ones: no row should pay for the longest."""

from __future__ import annotations

from benchmarks.bench import Bench, Entry
from benchmarks.contenders import CONTINUOUS, ENGINE, GENERATE, LLAMA_CPP
from benchmarks.report import Limits
from benchmarks.suites.mixes import half_switched
from benchmarks.workload import lengths


def run(bench: Bench) -> None:
    """1 x 1024 + 31 x 64, float32; half of our rows are switched."""
    model = bench.llama("15M")
    prompts, new_tokens = bench.pick(([1024] + [64] * 31, 32), ([64] + [8] * 3, 8))
    peer = CONTINUOUS["float32"]
    entries = [
        Entry(spec, lambda seed: lengths(prompts, new_tokens, model.vocab, seed, half_switched(model)))
        for spec in (GENERATE, peer, LLAMA_CPP["f32"], ENGINE["float32"], ENGINE["int8"])
    ]
    with bench.workers():
        cell = bench.cell(f"1 x {prompts[0]} and {len(prompts) - 1} x {prompts[1]}", model, entries)
    ours, theirs = [ENGINE["float32"].label], [peer.label]
    demand = "1 x 1024 + 31 x 64, float32, decode against continuous batching"
    bench.compare(demand, cell, ours, theirs, Limits(1.0, 1.5), "decode_tokens_per_second")
