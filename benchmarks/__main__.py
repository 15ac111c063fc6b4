"""``python -m benchmarks``: prints a table and writes ``benchmarks/results/simultaneous.json``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.simultaneous import contenders
from benchmarks.workload import SHAPES

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Runs every contender in turn, ``--repeats`` times, and reports medians and ratios to ``generate``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["15M"], choices=sorted(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32], help="simultaneous requests")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    cells = [measure(shape, rows, arguments.repeats, console) for shape in arguments.shapes for rows in arguments.rows]
    report = {"benchmark": "simultaneous", "machine": machine(arguments.threads), "cells": cells}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "simultaneous.json"
    file.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"written to {file}")


def measure(shape: str, rows: int, repeats: int, console: Console) -> dict[str, Any]:
    """Tokens a second of every contender, interleaved so that a noisy minute hits all of them."""
    made = contenders(shape, rows)
    for run in made.values():
        run()
    speeds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(repeats):
        for name, run in made.items():
            speeds[name].append(run())
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    baseline = next(iter(medians.values()))
    table = Table(title=f"{shape}, {rows} simultaneous requests, float32, median of {repeats}", title_justify="left")
    for column in ("contender", "tokens/s", "against generate"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, speed in medians.items():
        table.add_row(name, f"{speed:.0f}", f"{speed / baseline:.2f}")
    console.print(table)
    return {"shape": shape, "rows": rows, "tokens_per_second": speeds, "median": medians}


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
