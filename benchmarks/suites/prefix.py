"""Chats behind one system prompt: what reuse saves, for plain rows and for rows switched at the middle layer."""

from __future__ import annotations

from benchmarks.bench import Bench, Entry
from benchmarks.contenders import CONTINUOUS, ENGINE
from benchmarks.report import Limits
from benchmarks.workload import Intervention, Work, chats

CACHE_BYTES = 256 * 2**20
TAIL = (8, 24)


def run(bench: Bench) -> None:
    """Each chat is sent alone, so that its time to the first token is not a time of waiting.

    A chat that is switched has a switch of its own, which no chat had before: the keys and values above the switch are
    new to the cache, only those below it are not.
    """
    model = bench.llama("125M")
    count, system, new_tokens = bench.pick((5, 512, 2), (3, 64, 2))

    def plain(seed: int) -> Work:
        return chats(count, system, TAIL, new_tokens, model.vocab, seed)

    def switched(seed: int) -> Work:
        def new(index: int) -> tuple[Intervention, ...]:
            return (Intervention("autoencoder", model.middle, 1000 + seed * count + index),)

        return chats(count, system, TAIL, new_tokens, model.vocab, seed, new)

    without = ENGINE["float32"].having("interlock float32, no reuse")
    reusing = ENGINE["float32"].having("interlock float32, reuse", prefix_bytes=CACHE_BYTES)
    sharing = CONTINUOUS["float32"].having("transformers continuous batching float32, block sharing", kv_tokens=4096)
    entries = [
        Entry(without, plain),
        Entry(reusing, plain),
        Entry(sharing, plain),
        Entry(without, switched, "switched at the middle, all computed again"),
        Entry(reusing, switched, "switched at the middle, reuse"),
    ]
    with bench.workers():
        cell = bench.cell(f"{count} chats behind {system} tokens, one after the other", model, entries)
    for demand, ours, against, limits in (
        (
            "shared 512-token prefix, TTFT p50, reuse against none",
            reusing.label,
            without.label,
            Limits(0.25, 0.05, "less"),
        ),
        ("the same, switch at the middle layer", entries[4].name, entries[3].name, Limits(0.65, 0.5, "less")),
    ):
        bench.compare(demand, cell, [ours], [against], limits, "ttft_p50_ms")
