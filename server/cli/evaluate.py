"""``interlock evaluate``: the paper's experiments, measured on behaviour. Needs no server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from server.cli.output import AsJson, print_json
from server.cli.root import command_app

app = command_app()


@app.command()
def evaluate(
    suite: Annotated[Literal["paper"], typer.Option("--suite", help="Which experiments.")] = "paper",
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="EXPERIMENT", help="This experiment alone; repeatable.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed and fewer prompts: minutes instead of hours.")
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Report, and the cells it is made of: run again to go on.")
    ] = Path("evaluation"),
    organisms: Annotated[
        Path | None, typer.Option("--organisms", file_okay=False, help="Where models that are not shipped are built.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure switches and transferred vectors on held-out prompts, with their controls, and write a report.

    Every cell that was measured is kept in the output folder; an interrupted run goes on with the next one.
    """
    # torch is imported only when something is measured
    from server.evaluation.cli import list_experiments, run

    names = list_experiments(suite)
    if unknown := [name for name in only or () if name not in names]:
        raise typer.BadParameter(f"no experiment {', '.join(unknown)}; known: {', '.join(names)}", param_hint="--only")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=as_json)
    with Progress(*columns, console=console) as bar:
        summary = run(
            only or names, quick=quick, folder=out, cache=organisms or out / "organisms", device=device, bar=bar
        )
    if as_json:
        print_json(summary)
    else:
        console.print(f"report: {out / 'report.md'}", soft_wrap=True)
