"""Small pictures of curves. Needs matplotlib, which the development extra brings."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import Cell

LINES = {"tokens_per_second": "tokens/s", "peak_rss_mib": "peak RSS, MiB"}


def plot(cell: Cell, folder: Path) -> Path:
    """Draws speed and memory of a cell whose contenders are labelled by numbers; returns the picture's path.

    Raises ImportError without matplotlib.
    """
    from matplotlib.figure import Figure  # heavy, and only one suite draws

    points = [result for result in cell.contenders if result.median]
    figure = Figure(figsize=(6, 2.4), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(LINES)), LINES.items(), strict=True):
        values = [point.median[name] for point in points]
        axes.plot([float(point.label) for point in points], values, marker="o")
        axes.set(xlabel=cell.title.removeprefix("growth with "), ylabel=label, ylim=(0, 1.1 * max(values)))
        axes.grid(alpha=0.3)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{cell.title.replace(' ', '_')}.png"
    figure.savefig(file, dpi=80)
    return file
