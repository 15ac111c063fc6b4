"""How much of what the machine could do is done: bytes over bandwidth, operations over rate.

A step of n rows reads every weight once and does two operations a weight and row. Attention, sampling and everything
else count as nothing, so 100 % cannot be reached.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

from benchmarks.bench import Bench, Entry
from benchmarks.contenders import ENGINE
from benchmarks.figures import best
from benchmarks.models import Model, parameters
from benchmarks.pool import CHECKOUT
from benchmarks.report import Check, Limits
from benchmarks.suites.mixes import half_switched
from benchmarks.workload import Work, equal

PROMPT = 32
ITEMSIZE = {"float32": 4, "bfloat16": 2, "int8": 1}
DEMANDS = {1: Limits(0.35, 0.60), 32: Limits(0.20, 0.50)}


def run(bench: Bench) -> None:
    """125M, every dtype, half of the rows switched; the rates are measured before and after, the better counts."""
    model = bench.llama("125M")
    weights = parameters(model)
    rates = _rates(bench.options.threads)
    cells = {}
    with bench.workers():
        for rows in bench.pick((1, 32), (1, 4)):
            entries = [Entry(spec, partial(_work, model, rows, bench.pick(24, 4))) for spec in ENGINE.values()]
            cells[rows] = bench.cell(f"{rows} rows, decode", model, entries)
    again = _rates(bench.options.threads)
    rates = {name: max(rate, again[name]) for name, rate in rates.items()}
    bench.note("measured limits: " + ", ".join(f"{name} {rate / 1e9:.0f} G/s" for name, rate in rates.items()))
    figure = "decode_tokens_per_second"
    for rows, cell in cells.items():
        chosen = best({result.label: result.median for result in cell.contenders}, figure)
        for dtype, spec in ENGINE.items():
            seconds = max(weights * ITEMSIZE[dtype] / rates["bytes"], 2 * weights * rows / rates[dtype])
            found = cell.result(spec.label).median.get(figure)
            if found is None:
                continue
            share, limit = found * seconds / rows, rows / seconds
            bench.note(f"{spec.label}, n = {rows}: {found:.0f} of {limit:.0f} tokens/s, {share:.1%}")
            if spec.label == chosen and rows in DEMANDS:
                demand = f"share of the machine's limit, 125M, best dtype, n = {rows}"
                note = f"limit {limit:.0f} tokens/s"
                bench.check(Check.of(demand, round(share, 4), DEMANDS[rows], ours=spec.label, note=note))


def _work(model: Model, rows: int, new_tokens: int, seed: int) -> Work:
    return equal(rows, PROMPT, new_tokens, model.vocab, seed, half_switched(model))


def _rates(threads: int) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.probe", str(threads)]
    ran = subprocess.run(command, cwd=CHECKOUT, env=environment, check=True, capture_output=True, text=True)
    rates: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return rates
