"""``python -m benchmarks.linears``: one linear layer, torch's own float32 against how the engine computes it.

One thread is measured in processor time, several in wall time, where on a machine that others use too only the least
of many timings means something.

Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import write_cells
from server.engine.linears import linear_product

SHAPES = ((288, 288), (288, 768), (768, 2560), (288, 32_000), (768, 32_000))
ROWS = (1, 2, 4, 8, 32)
Layer = Callable[[Tensor], Tensor]

_SLICE_S = 0.004
"""Length of one timing: shorter than the scheduler's time slice, so that many of them are not interrupted."""


def contenders(inputs: int, outputs: int) -> Mapping[str, Layer]:
    """Name -> the layer in one arithmetic, all with the same random weights and without bias."""
    weight_OI = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    half_OI = weight_OI.bfloat16()

    def stock(x_NI: Tensor) -> Tensor:
        return F.linear(x_NI, weight_OI)

    def stock_half(x_NI: Tensor) -> Tensor:
        return F.linear(x_NI, half_OI)

    return {
        "stock float32": stock,
        "stock bfloat16": stock_half,
        "float32": linear_product(weight_OI, None, "native") or stock,
        "bfloat16": linear_product(half_OI, None, "native") or stock_half,
        "int8": linear_product(weight_OI, None, "int8") or stock,
    }


def measure(layers: Mapping[str, Layer], rows: int, inputs: int, repeats: int) -> dict[str, dict[str, float]]:
    """Microseconds a call, median and least, the contenders taking turns."""
    x_NI = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1))
    halves = {name: x_NI.bfloat16() if "bfloat16" in name else x_NI for name in layers}
    counts = {name: _calls(layer, halves[name]) for name, layer in layers.items()}
    taken: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(repeats):
        for name, layer in layers.items():
            taken[name].append(_timed(layer, halves[name], counts[name]))
    return {
        "median": {name: round(statistics.median(values) * 1e6, 1) for name, values in taken.items()},
        "least": {name: round(min(values) * 1e6, 1) for name, values in taken.items()},
    }


def _calls(layer: Layer, x_NI: Tensor) -> int:
    _timed(layer, x_NI, 2)
    return max(1, int(_SLICE_S / min(_timed(layer, x_NI, 1) for _ in range(5))))


def _timed(layer: Layer, x_NI: Tensor, calls: int) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    for _ in range(calls):
        layer(x_NI)
    return (clock() - began) / calls


@torch.inference_mode()
def main() -> None:
    """Measures every shape at every number of rows and writes ``results/linears.json``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linears", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=120)
    cells: list[dict[str, Any]] = []
    for inputs, outputs in SHAPES:
        layers = contenders(inputs, outputs)
        for rows in ROWS:
            cells.append(
                {"inputs": inputs, "outputs": outputs, "rows": rows} | measure(layers, rows, inputs, arguments.repeats)
            )
    for figure in ("median", "least"):
        console.print(_table(cells, figure))
    console.print(f"written to {write_cells(f'linears-{arguments.threads}-threads', cells, arguments.threads)}")


def _table(cells: list[dict[str, Any]], figure: str) -> Table:
    names = list(cells[0][figure])
    table = Table(title=f"microseconds a call, {figure} (times as fast as stock float32)", title_justify="left")
    for column in ("layer", "rows", *names):
        table.add_column(column, justify="right")
    for cell in cells:
        base = cell[figure][names[0]]
        figures = [f"{value:.0f} ({base / value:.1f})" for value in cell[figure].values()]
        table.add_row(f"{cell['inputs']} x {cell['outputs']}", str(cell["rows"]), *figures)
    return table


if __name__ == "__main__":
    main()
