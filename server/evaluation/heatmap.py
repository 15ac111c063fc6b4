"""A table of rates as a picture.

Shapes: R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from math import isnan

_MOST_LABELS = 24
"""Labels on an axis before only every second, third ... is written."""

_MOST_NUMBERS = 400
"""Cells up to which each one carries its number."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis is, and the label of each of its lines."""

    title: str
    labels: Sequence[str]


def heat_map(
    values_RC: Sequence[Sequence[float]],
    rows: Axis,
    columns: Axis,
    *,
    title: str,
    scale: str,
    chosen: tuple[int, int] | None = None,
) -> bytes:
    """A PNG of shares in [0, 1], the first row at the bottom; NaN stays blank, ``chosen`` (row, column) is framed."""
    from matplotlib.figure import Figure  # takes a second, and reads its configuration
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import PercentFormatter

    height, width = len(rows.labels), len(columns.labels)
    size = (min(2.6 + 0.62 * width, 18), min(1.7 + 0.42 * height, 18))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("0.85")
    image = axes.imshow(values_RC, cmap="viridis", vmin=0, vmax=1, aspect="auto", origin="lower")
    figure.colorbar(image, ax=axes, label=scale, format=PercentFormatter(1))
    for axis, side in ((axes.xaxis, columns), (axes.yaxis, rows)):
        places = range(0, len(side.labels), -(-len(side.labels) // _MOST_LABELS))
        axis.set_ticks(list(places), [side.labels[place] for place in places])
    axes.set(xlabel=columns.title, ylabel=rows.title)
    axes.set_title(title, fontsize=10)
    if height * width <= _MOST_NUMBERS:
        for row, values in enumerate(values_RC):
            for column, value in enumerate(values):
                if not isnan(value):
                    ink = "black" if value > 0.6 else "white"
                    axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize=8)
    if chosen is not None:
        frame = Rectangle((chosen[1] - 0.5, chosen[0] - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2.5)
        frame.set_clip_on(False)
        axes.add_patch(frame)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
