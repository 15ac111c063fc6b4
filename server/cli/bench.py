"""``interlock bench``: runs the checkout's ``benchmarks`` package, which is no part of the installed distribution."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from mappers.errors import InterlockError
from server.cli.output import AsJson
from server.cli.root import command_app

CHECKOUT = Path(__file__).resolve().parents[2]

PROGRAMS = ("soak", "durability", "beside", "lag")
"""What the package runs by itself, without the options of suites."""

app = command_app()


@app.command()
def bench(
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUITE]...", help=f"Suites to run; all if none. Or one of {', '.join(PROGRAMS)}, by itself."
        ),
    ] = None,
    list_suites: Annotated[bool, typer.Option("--list", help="List the suites and the minutes each takes.")] = False,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.1, help="Minutes of traffic, for soak.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny models, one repeat: shows that it runs, not how fast.")
    ] = False,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Repeats of every measurement.")] = 5,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of every contender.")] = 2,
    models: Annotated[
        Path | None,
        typer.Option(
            "--models", envvar="INTERLOCK_BENCH_MODELS", file_okay=False, help="Folder that holds stories260K."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", file_okay=False, help="Folder for the JSON files.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure this machine: speed and memory against peers on the same weights. Needs a checkout of the repository."""
    if not (CHECKOUT / "benchmarks" / "__main__.py").is_file():
        raise InterlockError(
            "the benchmarks are not installed with the package: run this from a checkout of the repository, where "
            "'make bench' does the same"
        )
    command = [sys.executable, "-m", "benchmarks", *(suites or [])]
    if minutes is not None and suites != ["soak"]:
        raise typer.BadParameter("only 'interlock bench soak' takes it", param_hint="--minutes")
    if suites and suites[0] in PROGRAMS:
        if len(suites) > 1:
            raise typer.BadParameter(f"{suites[0]} runs by itself: leave the others out", param_hint="SUITE")
        command += [] if minutes is None else [f"--minutes={minutes:g}"]
        raise typer.Exit(subprocess.run(command, cwd=CHECKOUT, check=False).returncode)
    command += [f"--repeats={repeats}", f"--threads={threads}"]
    command += [flag for flag, wanted in (("--list", list_suites), ("--quick", quick), ("--json", as_json)) if wanted]
    command += [f"--{name}={path.resolve()}" for name, path in (("models", models), ("out", out)) if path is not None]
    raise typer.Exit(subprocess.run(command, cwd=CHECKOUT, check=False).returncode)
