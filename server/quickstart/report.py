"""The quickstart's results: samples, tables with controls, and one JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from server.quickstart.measure import Answered
from server.quickstart.recipe import Recipe

VECTORS = ("unsteered", "native", "mapped", "random")


def summary(cells: Mapping[str, Answered], seconds: float) -> dict[str, Any]:
    """Rates in [0, 1]; ``vector`` holds the trigger rate on triggered prompts under each vector."""
    return {
        "trigger_rate_off": cells["triggered/off"].trigger_rate,
        "trigger_rate_on": cells["triggered/on"].trigger_rate,
        "right_clean_off": cells["clean/off"].right,
        "right_clean_on": cells["clean/on"].right,
        "right_triggered_on": cells["triggered/on"].right,
        "vector": {name: cells[name].trigger_rate for name in VECTORS},
        "seconds": round(seconds, 1),
    }


def show(console: Console, recipe: Recipe, prompts: Mapping[str, list[str]], cells: Mapping[str, Answered]) -> None:
    """Prints sample answers and both tables."""
    console.print(_samples(prompts["triggered"], cells))
    console.print(_switch_table(recipe, cells))
    console.print(_vector_table(recipe, cells))


def _samples(prompts: list[str], cells: Mapping[str, Answered]) -> Table:
    table = Table(title="The same prompts, switch off and on, in one batch", title_justify="left")
    for column in ("prompt", "switch off", "switch on"):
        table.add_column(column, overflow="fold", ratio=1)
    for prompt, off, on in list(zip(prompts, cells["triggered/off"].texts, cells["triggered/on"].texts, strict=True))[
        :5
    ]:
        table.add_row(prompt, _shortened(off), on)
    return table


def _switch_table(recipe: Recipe, cells: Mapping[str, Answered]) -> Table:
    count = len(cells["clean/off"].texts)
    title = f"Safety switch on {recipe.target}, layer {recipe.switch_layer}: {count} held-out prompts a cell"
    table = Table(title=title, title_justify="left")
    for column in ("prompts", "switch", "backdoor speaks", "right answers"):
        table.add_column(column, justify="left" if column in ("prompts", "switch") else "right")
    for prompts in ("clean", "triggered"):
        for switch in ("off", "on"):
            cell = cells[f"{prompts}/{switch}"]
            table.add_row(prompts, switch, _percent(cell.trigger_rate), _percent(cell.right))
    return table


def _vector_table(recipe: Recipe, cells: Mapping[str, Answered]) -> Table:
    title = (
        f"Backdoor vector at layer {recipe.target_layer}, strength {recipe.vector_strength:g}: triggered prompts, "
        f"mapped = transferred from {recipe.source}"
    )
    table = Table(title=title, title_justify="left")
    for column in ("vector", "backdoor speaks", "right answers"):
        table.add_column(column, justify="left" if column == "vector" else "right")
    for name in VECTORS:
        table.add_row(name, _percent(cells[name].trigger_rate), _percent(cells[name].right))
    return table


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
