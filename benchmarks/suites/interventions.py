"""What interventions cost in a batch, and one batch against libraries that intervene on one request at a time."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.bench import Bench, Entry
from benchmarks.contenders import ENGINE, NNSIGHT, STEERING_VECTORS
from benchmarks.models import Model
from benchmarks.report import Limits
from benchmarks.suites.mixes import all_switched, distinct_autoencoders, distinct_vectors, mixed
from benchmarks.workload import Intervene, Work, equal, nothing

ROWS, PROMPT = 32, 32
COST_REPEATS = 7


def run(bench: Bench) -> None:
    """First the cost, float32, 15M; small differences, so more repeats. Then mixed interventions against peers."""
    model = bench.llama("15M")
    with bench.workers():
        _cost(bench, model, bench.pick(32, 4))
    with bench.workers():
        _against_peers(bench, model, bench.pick(ROWS, 4), bench.pick(16, 4))


def _cost(bench: Bench, model: Model, new_tokens: int) -> None:
    rows = bench.pick(ROWS, 4)
    engine = ENGINE["float32"]

    def entry(label: str, intervene: Intervene) -> Entry:
        return Entry(engine, lambda seed: equal(rows, PROMPT, new_tokens, model.vocab, seed, intervene), label)

    none = entry("nothing asked", nothing)
    bare = Entry(engine, lambda seed: replace(none.work(seed), hooks=False), "no hooks installed")
    switch = entry("one switch on every row", all_switched(model))
    distinct = [
        entry(f"{rows} distinct vectors", distinct_vectors(model)),
        entry(f"{rows} distinct autoencoders", distinct_autoencoders(model)),
        entry(f"{rows} mixed", mixed(model)),
    ]
    cell = bench.cell(f"{rows} rows, cost of interventions", model, [none, bare, switch, *distinct], COST_REPEATS)
    against = [none.name]
    bench.compare("one autoencoder switch on every row against none", cell, [switch.name], against, Limits(0.95, 0.99))
    for entry_ in distinct:
        bench.compare(f"{entry_.name} in one batch against none", cell, [entry_.name], against, Limits(0.90, 0.97))
    bench.compare("hooks installed, nothing asked, against no hooks", cell, against, [bare.name], Limits(0.99, 1.0))


def _against_peers(bench: Bench, model: Model, rows: int, new_tokens: int) -> None:
    """That the last line has other tokens shows that interventions act; that the first three have the same, how."""

    def work(seed: int) -> Work:
        return equal(rows, PROMPT, new_tokens, model.vocab, seed, mixed(model))

    ours = ENGINE["float32"]
    peers = (STEERING_VECTORS, NNSIGHT)
    plain = Entry(ours, lambda seed: equal(rows, PROMPT, new_tokens, model.vocab, seed), "the same, nothing asked")
    entries = [*(Entry(spec, work) for spec in (ours, *peers)), plain]
    cell = bench.cell(f"{rows} mixed interventions", model, entries)
    for peer in peers:
        demand = f"{rows} mixed interventions in one batch against {peer.label}"
        bench.compare(demand, cell, [ours.label], [peer.label], Limits(8.0, 20.0))
