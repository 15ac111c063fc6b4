"""What commands print: tables for people, and with ``--json`` one JSON object as the last line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

_WHOLE = frozenset({"id", "kind", "name", "state"})
_PIPED_WIDTH = 1000

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def print_json(value: Mapping[str, Any]) -> None:
    """``value`` on one line of stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; cells are plain text, never markup. Ids, names and states are never broken."""
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in _WHOLE)
    for row in rows:
        table.add_row(*[_cell(cell) for cell in row])
    # What another program reads must not depend on the width of a terminal that is not there.
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    Console(highlight=False, markup=False, width=width).print(table)


def print_fields(fields: Mapping[str, Any]) -> None:
    """One field a line; nested values as JSON."""
    console = Console(highlight=False, markup=False)
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        console.print(f"{name:<{width}}  {_cell(value)}", soft_wrap=True)


def age(seconds: float | None) -> str:
    """How long ago a time (seconds since the epoch) was, such as ``5 min ago``."""
    if seconds is None:
        return "-"
    passed = max(0.0, time.time() - seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed >= size:
            return f"{passed / size:.0f} {unit} ago"
    return "just now"


def byte_size(count: int | None) -> str:
    """``1.5 MB`` and the like, in powers of 1000."""
    if count is None:
        return "-"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _cell(value: object) -> str:
    if value is None or value == [] or value == {}:
        return "-"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
