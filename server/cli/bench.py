"""``interlock bench``: runs the checkout's ``benchmarks`` package, which is no part of the installed distribution."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Annotated

import typer

from mappers.errors import InterlockError
from server.cli.output import AsJson
from server.cli.root import command_app

CHECKOUT = Path(__file__).resolve().parents[2]

PROGRAMS: Mapping[str, Set[str]] = {"soak": {"--minutes"}, "durability": set(), "beside": {"--repeats"}, "lag": set()}
"""What the package runs by itself, and the options that each has."""

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
    repeats: Annotated[
        int | None, typer.Option("--repeats", min=1, help="Repeats of every measurement.", show_default="5")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of every contender.", show_default="2")
    ] = None,
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
    places = {"--models": models, "--out": out}
    flags = {"--list": list_suites, "--quick": quick, "--json": as_json}
    counts = {"--repeats": repeats, "--threads": threads, "--minutes": minutes}
    given = [name for name, value in (places | flags | counts).items() if value not in (None, False)]
    command = [sys.executable, "-m", "benchmarks", *(suites or [])]
    program = next((name for name in suites or () if name in PROGRAMS), None)
    if program is not None and len(suites or ()) > 1:
        raise typer.BadParameter(f"{program} runs by itself: leave the others out", param_hint="SUITE")
    known = PROGRAMS.get(program or "", counts.keys() - {"--minutes"} | places.keys() | flags.keys())
    if unknown := [name for name in given if name not in known]:
        raise typer.BadParameter(f"{program or 'a suite'} does not take it", param_hint=unknown[0])
    command += [f"{name}={value:g}" for name, value in counts.items() if value is not None]
    command += [name for name, wanted in flags.items() if wanted]
    command += [f"{name}={path.resolve()}" for name, path in places.items() if path is not None]
    raise typer.Exit(subprocess.run(command, cwd=CHECKOUT, check=False).returncode)
