"""Requests of mixed lengths that come one after the other: what a server really sees."""

from __future__ import annotations

from benchmarks.bench import Bench, Entry
from benchmarks.contenders import CONTINUOUS, ENGINE, GENERATE, GENERATE_EACH, LLAMA_CPP
from benchmarks.report import Limits
from benchmarks.suites.mixes import half_switched
from benchmarks.workload import Work, staggered

FEW_PER_SECOND, MANY_PER_SECOND = 21.0, 64.0
PROMPT, NEW = (8, 128), (16, 128)
ROOM_256 = 49_152


def run(bench: Bench) -> None:
    """32 requests in 1.5 s against everybody, 256 in 4 s against continuous batching; half of our rows are switched.

    Arrivals bound the tokens a second that can be seen: here to about 1600 and 4600.
    """
    model = bench.llama("15M")
    prompt, new_tokens = bench.pick((PROMPT, NEW), ((4, 8), (2, 4)))

    def work(count: int, per_second: float, seed: int) -> Work:
        return staggered(count, per_second, prompt, new_tokens, model.vocab, seed, half_switched(model))

    few = bench.pick(32, 4)
    with bench.workers():
        contenders = (
            GENERATE_EACH,
            GENERATE,
            CONTINUOUS["float32"],
            LLAMA_CPP["q8_0"],
            ENGINE["float32"],
            ENGINE["int8"],
        )
        cell = bench.cell(
            f"{few} staggered",
            model,
            [Entry(spec, lambda seed: work(few, FEW_PER_SECOND, seed)) for spec in contenders],
        )
        demand = "32 staggered, float32, against generate one by one"
        for name, figure, limits in (
            ("tokens/s", "tokens_per_second", Limits(6.0, 12.0)),
            ("TTFT p95", "ttft_p95_ms", Limits(0.02, 0.005, "less")),
        ):
            bench.compare(f"{demand}: {name}", cell, [ENGINE["float32"].label], [GENERATE_EACH.label], limits, figure)
    many = bench.pick(256, 8)
    peer = CONTINUOUS["bfloat16"].having(kv_tokens=ROOM_256)
    with bench.workers():
        contenders = (peer, ENGINE["bfloat16"], ENGINE["int8"])
        cell = bench.cell(
            f"{many} staggered",
            model,
            [Entry(spec, lambda seed: work(many, MANY_PER_SECOND, seed)) for spec in contenders],
        )
    demand = "256 staggered, best dtype against continuous batching in bfloat16"
    bench.compare(demand, cell, [spec.label for spec in contenders[1:]], [peer.label], Limits(1.5, 3.0))
