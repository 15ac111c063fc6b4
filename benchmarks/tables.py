"""Cells and demands as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from benchmarks.figures import UNITS
from benchmarks.report import Cell, Check

VERDICTS = {True: "yes", False: "NO", None: "not measured"}


def cell_table(cell: Cell) -> Table:
    """Medians, one contender a line; who is absent stands there with the reason."""
    present = [result for result in cell.contenders if result.absent is None]
    names = [name for name in UNITS if any(name in result.median for result in present)]
    table = _table(
        f"{cell.title} [{cell.model}]", ["contender", *[UNITS[name] for name in names], "start s", "equal tokens"]
    )
    for result in cell.contenders:
        if result.absent is None:
            figures = [result.median.get(name) for name in names]
            table.add_row(
                result.label, *[_number(figure) for figure in (*figures, result.start_s, result.equal_tokens)]
            )
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


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
