"""Decoding behind long contexts: reading keys and values is what takes the time."""

from __future__ import annotations

from benchmarks.bench import Bench, Entry
from benchmarks.contenders import CONTINUOUS, ENGINE, LLAMA_CPP
from benchmarks.report import Limits
from benchmarks.suites.mixes import half_switched
from benchmarks.workload import equal


def run(bench: Bench) -> None:
    """32 contexts of 512 tokens, float32; half of our rows are switched. All still answer when the last was read."""
    model = bench.llama("15M")
    rows, prompt, new_tokens = bench.pick((32, 512, 96), (4, 64, 8))
    peer = CONTINUOUS["float32"].having(kv_tokens=24_576)
    entries = [
        Entry(spec, lambda seed: equal(rows, prompt, new_tokens, model.vocab, seed, half_switched(model)))
        for spec in (peer, LLAMA_CPP["f32"], ENGINE["float32"], ENGINE["int8"])
    ]
    with bench.workers():
        cell = bench.cell(f"{rows} x {prompt} + {new_tokens} tokens", model, entries)
    ours, theirs = [ENGINE["float32"].label], [peer.label]
    demand = "32 x 512, float32, decode against continuous batching"
    bench.compare(demand, cell, ours, theirs, Limits(1.5, 3.0), "decode_tokens_per_second")
