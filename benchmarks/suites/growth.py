"""How speed and memory of the engine move with rows, context, layers that have sites, and distinct interventions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.bench import Bench, Entry
from benchmarks.contenders import ENGINE
from benchmarks.models import Model
from benchmarks.plots import plot
from benchmarks.suites.mixes import distinct_vectors, half_switched
from benchmarks.workload import Intervene, Work, equal, nothing

PROMPT = 32
Point = Callable[[int, int], Work]


def run(bench: Bench) -> None:
    """15M, float32. Points of one curve are measured in turn, so that noise does not look like growth."""
    model = bench.llama("15M")
    new = bench.pick(16, 4)
    few, some, many = bench.pick((8, 32, 256), (2, 2, 8))
    curves: dict[str, tuple[Sequence[int], Point]] = {
        "rows": (
            bench.pick((1, 4, 16, 64, 128), (1, 4)),
            lambda rows, seed: equal(rows, PROMPT, new, model.vocab, seed, half_switched(model)),
        ),
        "context": (
            bench.pick((32, 128, 512, 1024), (8, 64)),
            lambda context, seed: equal(few, context, 2 * new, model.vocab, seed, half_switched(model)),
        ),
        "layers with sites": (
            range(model.layers + 1),
            lambda layers, seed: equal(some, PROMPT, new, model.vocab, seed, distinct_vectors(model, None, layers)),
        ),
        "distinct interventions": (
            bench.pick((0, 1, 16, 64, 256), (0, 2)),
            lambda count, seed: equal(many, few, new // 2, model.vocab, seed, _distinct(model, count)),
        ),
    }
    with bench.workers():
        for axis, (points, work) in curves.items():
            entries = [Entry(ENGINE["float32"], partial(work, point), str(point)) for point in points]
            cell = bench.cell(f"growth with {axis}", model, entries)
            try:
                bench.note(f"drawn: {plot(cell, bench.options.out).name}")
            except ImportError as error:
                bench.note(f"not drawn: {error}")


def _distinct(model: Model, count: int) -> Intervene:
    return distinct_vectors(model, count) if count else nothing
