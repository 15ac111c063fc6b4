"""Cells measured by several processes at once: the organisms are too small for more than one thread each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from server.evaluation.experiment import Cell, Experiment
from server.evaluation.lab import Lab
from server.evaluation.ledger import Key, Ledger
from server.evaluation.scale import Scale


@dataclass(frozen=True, slots=True)
class Order:
    """One cell to be measured and kept under ``key``, and everything a process needs to open a lab of its own."""

    experiment: Experiment
    cell: Cell
    key: Key
    cells: Path
    scale: Scale
    cache: Path
    device: str
    places: Mapping[str, str]
    max_tokens: int


def measure_all(orders: Sequence[Order], processes: int, done: Callable[[Order], None]) -> None:
    """Carries out the orders; ``done`` is called for each as it is finished. What one raises ends all."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(carry_out, order): order for order in orders}
        try:
            for finished in as_completed(running):
                finished.result()
                done(running[finished])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def carry_out(order: Order) -> None:
    """Measures one cell in this process, on one thread."""
    torch.set_num_threads(1)
    lab = Lab(
        order.scale,
        order.cache,
        torch.device(order.device),
        lambda _stage, _step, _total: None,
        places=order.places,
        max_tokens=order.max_tokens,
    )
    began = time.monotonic()
    figures = order.experiment.measure(lab, order.cell)
    figures["seconds"] = round(time.monotonic() - began, 1)
    Ledger(order.cells).keep(order.key, figures)
