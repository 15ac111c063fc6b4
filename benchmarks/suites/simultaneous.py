"""Equal requests at the same time: the best case of a padded batch."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.bench import Bench, Entry
from benchmarks.contenders import CONTINUOUS, ENGINE, GENERATE, LLAMA_CPP, VLLM, Spec
from benchmarks.models import Model
from benchmarks.report import Cell, Limits
from benchmarks.suites.mixes import half_switched
from benchmarks.workload import equal

PROMPT = 32
SMALL = (GENERATE, CONTINUOUS["float32"], LLAMA_CPP["q8_0"], *ENGINE.values())
LARGE = (GENERATE, CONTINUOUS["bfloat16"], *LLAMA_CPP.values(), VLLM, *ENGINE.values())
NEW_TOKENS = {1: 48, 8: 48, 32: 32, 128: 16}
OURS = [spec.label for spec in ENGINE.values()]
LLAMAS = [spec.label for spec in LLAMA_CPP.values()]

FLOAT32 = {1: Limits(1.0, 1.3), 8: Limits(1.0, 1.5), 32: Limits(1.1, 2.0)}
BEST = {1: Limits(2.5, 4.0), 8: Limits(2.5, 4.0), 32: Limits(3.0, 5.0)}
AGAINST_LLAMA_CPP = {1: Limits(0.7, 1.0), 32: Limits(1.5, 2.0)}


def run(bench: Bench) -> None:
    """15M and 125M against peers at their best, then a model that others trained and an organism."""
    small = bench.llama("15M")
    with bench.workers():
        for rows in bench.pick((1, 8, 32, 128), (1, 8)):
            cell = measure(bench, small, rows, SMALL)
            against_generate(bench, cell, rows)
    large = bench.llama("125M")
    with bench.workers():
        for rows in bench.pick((1, 32), (1, 8)):
            cell = measure(bench, large, rows, LARGE)
            if rows in AGAINST_LLAMA_CPP:
                demand = f"125M, n = {rows}, best dtype against llama.cpp at its best"
                bench.compare(demand, cell, OURS, LLAMAS, AGAINST_LLAMA_CPP[rows])
    for model in filter(None, (bench.trained("stories260K"), bench.organism("llama-small-backdoor"))):
        with bench.workers():
            measure(bench, model, bench.pick(32, 4), (GENERATE, *ENGINE.values()))


def measure(bench: Bench, model: Model, rows: int, contenders: Sequence[Spec]) -> Cell:
    """One number of rows; half of ours are switched."""
    new_tokens = bench.pick(NEW_TOKENS, dict.fromkeys((1, 4, 8), 4))[rows]
    entries = [
        Entry(spec, lambda seed: equal(rows, PROMPT, new_tokens, model.vocab, seed, half_switched(model)))
        for spec in contenders
    ]
    return bench.cell(f"{rows} simultaneous, {PROMPT} + {new_tokens} tokens", model, entries)


def against_generate(bench: Bench, cell: Cell, rows: int) -> None:
    """The demands on simultaneous requests."""
    if rows in FLOAT32:
        bench.compare(
            f"n = {rows}, float32 against generate", cell, [ENGINE["float32"].label], [GENERATE.label], FLOAT32[rows]
        )
        bench.compare(f"n = {rows}, best dtype against generate", cell, OURS, [GENERATE.label], BEST[rows])
