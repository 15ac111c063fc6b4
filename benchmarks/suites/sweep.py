"""A sweep of sites and strengths: all cells in shared batches against one request at a time."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.bench import Bench, Entry
from benchmarks.contenders import ENGINE, HOOKED_EACH
from benchmarks.models import Model
from benchmarks.report import Limits
from benchmarks.workload import Intervention, Work, equal

CELLS, PROMPTS = 32, 4
PROMPT, NEW_TOKENS = 24, 16
PREFIX_BYTES = 64 * 2**20


def run(bench: Bench) -> None:
    """An organism, which the paper's experiments sweep, and a model thirty times its size; float32.

    As in the job, prompts are kept below the layer at which a cell first changes them; so they are one by one.
    """
    for model in (bench.organism("llama-small-backdoor"), bench.llama("15M")):
        with bench.workers():
            _against_one_at_a_time(bench, model)


def _against_one_at_a_time(bench: Bench, model: Model) -> None:
    cells, prompts, new_tokens = bench.pick((CELLS, PROMPTS, NEW_TOKENS), (8, 1, 4))

    def work(seed: int) -> Work:
        """Every prompt under a vector of its own strength at each layer in turn, as a sweep asks."""

        def cell(index: int) -> tuple[Intervention, ...]:
            place = index // prompts
            return (Intervention("vector", place % model.layers, place),)

        asked = equal(prompts, PROMPT, new_tokens, model.vocab, seed).requests
        return Work(
            tuple(replace(asked[i % prompts], interventions=cell(i)) for i in range(cells * prompts)),
        )

    engine = ENGINE["float32"].having(prefix_bytes=PREFIX_BYTES)
    ours = Entry(engine, work, "in shared batches")
    each = Entry(engine, lambda seed: replace(work(seed), one_at_a_time=True), "the same engine, one by one")
    hooked = Entry(HOOKED_EACH, work)
    title = f"{cells} cells of {prompts} prompts, {PROMPT} + {new_tokens} tokens"
    cell = bench.cell(title, model, [ours, each, hooked])
    for against in (each, hooked):
        demand = f"site sweep of {model.name} through the engine against {against.name}"
        bench.compare(demand, cell, [ours.name], [against.name], Limits(8.0, 20.0))
