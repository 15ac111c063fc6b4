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

app = command_app()


@app.command()
def bench(
    suites: Annotated[
        list[str] | None, typer.Argument(metavar="[SUITE]...", help="Suites to run; all if none.")
    ] = None,
    list_suites: Annotated[bool, typer.Option("--list", help="List the suites and the minutes each takes.")] = False,
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
    command += [f"--repeats={repeats}", f"--threads={threads}"]
    command += [flag for flag, wanted in (("--list", list_suites), ("--quick", quick), ("--json", as_json)) if wanted]
    command += [f"--{name}={path.resolve()}" for name, path in (("models", models), ("out", out)) if path is not None]
    raise typer.Exit(subprocess.run(command, cwd=CHECKOUT, check=False).returncode)
