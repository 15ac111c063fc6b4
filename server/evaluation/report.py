"""What an experiment has to say: tables, demands, pictures and the figures of the summary; and the pages made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts; the first column is left-aligned, the others right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """The table as Markdown, its title above and its note below."""
        rule = ["---", *["--:"] * (len(self.columns) - 1)]
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.columns, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, *(["", self.note] if self.note else [])])


@dataclass(frozen=True, slots=True)
class Demand:
    """A figure that has to be reached, and whether it was."""

    what: str
    at_least: str
    measured: str
    met: bool


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture: ``draw`` fills a figure that is written as ``file`` (PNG)."""

    file: str
    caption: str
    draw: Callable[[Figure], None]


@dataclass(frozen=True, slots=True)
class Section:
    """One experiment's part of the report. ``summary`` goes into the last line of ``--json``."""

    title: str
    text: str
    tables: Sequence[Table] = ()
    demands: Sequence[Demand] = ()
    plots: Sequence[Plot] = ()
    summary: Mapping[str, JsonValue] | None = None


def write_report(
    folder: Path,
    title: str,
    facts: Mapping[str, str],
    sections: Sequence[Section],
    raw: Mapping[str, JsonValue],
) -> dict[str, JsonValue]:
    """Writes ``report.md``, ``report.json`` and the plots into ``folder``; returns the summary of all sections.

    ``facts`` say how the report came about (machine, versions, sizes, time); ``raw`` are the figures of every cell.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for plot in section.plots:
            _draw(plot, folder / plot.file)
    (folder / "report.md").write_text(_page(title, facts, sections), encoding="utf-8")
    summary = {name: value for section in sections for name, value in (section.summary or {}).items()}
    demands = [vars_of(demand) for section in sections for demand in section.demands]
    content = {"title": title, "facts": dict(facts), "summary": summary, "demands": demands, "cells": dict(raw)}
    (folder / "report.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return summary


def vars_of(demand: Demand) -> dict[str, JsonValue]:
    """A demand as JSON."""
    return {"what": demand.what, "at_least": demand.at_least, "measured": demand.measured, "met": demand.met}


def _page(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    parts = [f"# {title}", "\n".join(f"* {name}: {value}" for name, value in facts.items())]
    demands = [demand for section in sections for demand in section.demands]
    if demands:
        rows = [(d.what, d.at_least, d.measured, "yes" if d.met else "**no**") for d in demands]
        parts.append(Table("What has to be reached", ("what", "at least", "measured", "reached"), rows).markdown())
    for section in sections:
        parts += [f"## {section.title}", section.text]
        parts += [table.markdown() for table in section.tables]
        parts += [f"![{plot.caption}]({plot.file})\n\n*{plot.caption}*" for plot in section.plots]
    return "\n\n".join(parts) + "\n"


def _draw(plot: Plot, path: Path) -> None:
    # matplotlib takes a second to import, and most commands draw nothing
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    plot.draw(figure)
    figure.savefig(path, dpi=110)
