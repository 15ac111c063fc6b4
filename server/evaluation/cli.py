"""What ``interlock evaluate`` calls: experiments by name, with a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import JsonValue
from rich.progress import Progress

from server.evaluation.experiments import PAPER
from server.evaluation.lab import Lab
from server.evaluation.scale import FULL, QUICK
from server.evaluation.suite import Started, run_suite


def list_experiments(suite: str) -> list[str]:
    """The names of a suite's experiments in the order of the report."""
    assert suite == "paper"
    return [experiment.name for experiment in PAPER]


def run(
    names: Sequence[str], *, quick: bool, folder: Path, cache: Path, device: str, bar: Progress
) -> dict[str, JsonValue]:
    """Runs the named experiments; returns the report's summary."""
    overall = bar.add_task("cells", total=None)
    stage = bar.add_task("starting", total=None)

    def started(one: Started) -> None:
        what = f"{one.experiment}: {one.cell.subject}, seed {one.cell.seed}"
        bar.update(overall, description=f"cell {one.number} of {one.total}", completed=one.number - 1, total=one.total)
        if one.kept:
            bar.console.print(f"kept      {what}")
        else:
            bar.console.print(f"measuring {what}")

    def report(name: str, step: int, total: int | None) -> None:
        bar.update(stage, description=name, completed=step, total=total)

    lab = Lab(QUICK if quick else FULL, cache, torch.device(device), report)
    chosen = [experiment for experiment in PAPER if experiment.name in names]
    return run_suite(chosen, lab, folder, started)
