"""Runs experiments cell by cell through the ledger and writes the report."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import JsonValue

from server.evaluation.experiment import Cell, Experiment
from server.evaluation.lab import Lab
from server.evaluation.ledger import Figures, Key, Ledger
from server.evaluation.pool import Order, measure_all
from server.evaluation.report import write_report

_TITLE = "Activation space interventions, measured"


@dataclass(frozen=True, slots=True)
class Started:
    """Cell ``number`` (from 1) of ``total`` is about to be measured, or taken from the ledger (``kept``).

    Where several processes measure, it has just been measured.
    """

    experiment: str
    cell: Cell
    number: int
    total: int
    kept: bool


def run_suite(
    experiments: Sequence[Experiment],
    lab: Lab,
    folder: Path,
    started: Callable[[Started], None],
    *,
    measure: bool = True,
    processes: int = 1,
) -> dict[str, JsonValue]:
    """Measures every cell that ``folder/cells`` does not hold yet, then writes the report into ``folder``.

    Returns the summary. Interrupted at any point, it goes on with the first cell that was not finished. Without
    ``measure`` the report is made of the cells that are there, and says how many are missing. ``processes`` measure
    cells at the same time.
    """
    ledger = Ledger(folder / "cells")
    began = time.monotonic()
    planned = [(experiment, cell) for experiment in experiments for cell in experiment.cells(lab.scale)]
    if measure and processes > 1:
        _measure_together(planned, lab, ledger, processes, started)
    measured: dict[str, dict[Cell, Figures]] = {experiment.name: {} for experiment in experiments}
    seconds = 0.0
    for number, (experiment, cell) in enumerate(planned, start=1):
        if not measure and not all(map(lab.has, cell.models)):
            continue
        key = _key(experiment, cell, lab)
        figures = ledger.find(key)
        if figures is None and not measure:
            continue
        started(Started(experiment.name, cell, number, len(planned), figures is not None))
        if figures is None:
            cell_began = time.monotonic()
            figures = experiment.measure(lab, cell)
            figures["seconds"] = round(time.monotonic() - cell_began, 1)
            ledger.keep(key, figures)
        seconds += float(str(figures["seconds"]))
        measured[experiment.name][cell] = figures
    sections = [one.section(measured[one.name]) for one in experiments if measured[one.name]]
    minutes = f"{seconds / 60:.0f} minutes in all, this run {(time.monotonic() - began) / 60:.0f}"
    missing = len(planned) - sum(map(len, measured.values()))
    facts = _facts(lab) | {"measuring took": minutes}
    if missing:
        facts["not measured"] = f"{missing} of {len(planned)} cells; the tables say of how many seeds they are"
    return write_report(folder, _TITLE, facts, sections, _raw(measured))


def _measure_together(
    planned: Sequence[tuple[Experiment, Cell]],
    lab: Lab,
    ledger: Ledger,
    processes: int,
    started: Callable[[Started], None],
) -> None:
    """Fills the ledger. Models are built here, by one process, when their digests are asked for."""
    keys = [_key(experiment, cell, lab) for experiment, cell in planned]
    orders = [
        Order(*one, key, ledger.folder, lab.scale, lab.cache, str(lab.device), lab.places, lab.max_tokens)
        for one, key in zip(planned, keys, strict=True)
        if ledger.find(key) is None
    ]
    finished = len(planned) - len(orders)

    def done(order: Order) -> None:
        nonlocal finished
        finished += 1
        started(Started(order.experiment.name, order.cell, finished, len(planned), kept=False))

    measure_all(orders, processes, done)


def _key(experiment: Experiment, cell: Cell, lab: Lab) -> Key:
    scale = {name: value for name, value in asdict(lab.scale).items() if name != "seeds"}
    return {
        "experiment": experiment.name,
        "version": experiment.version,
        "subject": cell.subject,
        "seed": cell.seed,
        "weights": [lab.digest(name) for name in cell.models],
        "scale": scale,
    }


def _facts(lab: Lab) -> dict[str, str]:
    device = platform.processor() or platform.machine()
    if lab.device.type == "cuda":
        device = torch.cuda.get_device_name(lab.device)
    seeds = ", ".join(map(str, lab.scale.seeds))
    return {
        "size": f"{lab.scale.name}: seeds {seeds}, {lab.scale.held_out} held-out prompts a cell",
        "device": f"{device}, {torch.get_num_threads()} threads",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("interlock", "torch", "transformers")),
    }


def _raw(measured: Mapping[str, Mapping[Cell, Figures]]) -> dict[str, JsonValue]:
    return {
        name: [{"subject": cell.subject, "seed": cell.seed, "figures": figures} for cell, figures in cells.items()]
        for name, cells in measured.items()
    }
