"""Cells and demands as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from benchmarks.figures import UNITS
from benchmarks.report import Cell, Check, ContenderResult

COLUMNS = {**UNITS, "start_s": "start s", "equal_tokens": "equal tokens"}
VERDICTS = {True: "yes", False: "NO", None: "not measured"}


def cell_table(cell: Cell) -> Table:
    """Medians, one contender a line; who is absent stands there with the reason."""
    shown = {result.label: _shown(result) for result in cell.contenders if result.absent is None}
    columns = [name for name in COLUMNS if any(name in figures for figures in shown.values())]
    table = _table(f"{cell.title} [{cell.model}]", ["contender", *[COLUMNS[name] for name in columns]])
    for result in cell.contenders:
        if result.absent is None:
            table.add_row(result.label, *[_number(shown[result.label].get(name)) for name in columns])
        else:
            table.add_row(result.label, result.absent)
    return table


def check_table(checks: Sequence[Check]) -> Table:
    """What was demanded, what was found, whether it is enough."""
    table = _table("Demands", ["demand", "found", "at least / at most", "met", "aim", "met", "ours", "against", "note"])
    for check in checks:
        sign = ">=" if check.better == "more" else "<="
        table.add_row(
            check.demand,
            _number(check.value),
            f"{sign} {check.bound:g}",
            VERDICTS[check.met],
            f"{sign} {check.aim:g}",
            VERDICTS[check.aim_met],
            check.ours,
            check.against,
            check.note,
        )
    return table


def _shown(result: ContenderResult) -> dict[str, float]:
    others = {"start_s": result.start_s, "equal_tokens": result.equal_tokens}
    return result.median | {name: value for name, value in others.items() if value is not None}


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
