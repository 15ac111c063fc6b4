"""``interlock organisms``: build the small models with planted behaviour, and list them. Needs no server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mappers.organisms.catalogue import ORGANISMS, organism, shipped_path
from server.cli.output import AsJson, print_json, print_table
from server.cli.root import command_app

app = command_app(no_args_is_help=True, help="Build the small models with planted behaviour, and list them.")


@app.command("list")
def list_organisms(as_json: AsJson = False) -> None:
    """List the organisms and where the shipped ones lie."""
    rows = [
        (one.name, one.kind, one.parent and one.parent.name, shipped_path(one.name)) for one in map(organism, ORGANISMS)
    ]
    if as_json:
        keys = ("name", "kind", "parent", "path")
        print_json({"organisms": [dict(zip(keys, (*row, path and str(path)), strict=True)) for *row, path in rows]})
    else:
        print_table("Organisms", ("name", "kind", "fine-tuned from", "shipped at"), rows)


@app.command()
def build(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Build this one (and what it is fine-tuned from); repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder that gets a folder for each.")] = Path(
        "organisms"
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Equal seeds give equal weights on one machine.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Build organisms from a seed: tokenizer, training, measurement, model card. Minutes on one core for each."""
    names = only or list(ORGANISMS)
    unknown = [name for name in names if name not in ORGANISMS]
    if unknown:
        raise typer.BadParameter(
            f"no organism {', '.join(unknown)}; known: {', '.join(ORGANISMS)}", param_hint="--only"
        )
    started = time.monotonic()
    built = _build(names, out, seed, Console(stderr=as_json))
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        print_json({"built": [{"name": name, "path": str(out / name)} for name in built], "seconds": seconds})
    else:
        typer.echo(f"built {', '.join(built)} in {seconds:.0f} s, in {out}; figures in {out / 'ORGANISMS.md'}")


def _build(names: Sequence[str], out: Path, seed: int, console: Console) -> list[str]:
    from mappers.organisms.build import build_organisms  # torch is imported only when something is built

    built: list[str] = []
    tasks: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[loss]}"), console=console) as bar:
        for report in build_organisms(names, out, seed):
            if report.organism not in tasks:
                tasks[report.organism] = bar.add_task(report.organism, total=report.steps, loss="")
            bar.update(
                tasks[report.organism],
                description=f"{report.organism}: {report.stage}",
                completed=report.step,
                total=report.steps,
                loss="" if report.loss is None else f"loss {report.loss:.3f}",
            )
            if report.stage == "done":
                built.append(report.organism)
    return built
