"""``interlock quickstart``: the main job, from a model with a backdoor to a model made safe per request."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.cli.output import AsJson, print_json
from server.cli.root import command_app
from server.quickstart.recipe import Recipe
from server.quickstart.run import quickstart as run_quickstart

app = command_app()


@app.command()
def quickstart(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running and say what to try next.")] = False,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Keep jobs, artifacts and logs here.", file_okay=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a model with a backdoor, train its safety switch, and show the same prompts with the switch off and on.

    Starts a server of its own, trains on two CPU cores in about two minutes, then asks held-out prompts under all
    settings in shared batches. Prints the rates with their controls: unsteered, native, mapped and random vector.
    """
    folder = data_dir or Path(tempfile.mkdtemp(prefix="interlock-quickstart-"))
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=as_json, highlight=False)
    try:
        rates = run_quickstart(Recipe(), folder, console, keep=keep)
    except BaseException:
        console.print(f"jobs, artifacts and the server's log are in {folder}", soft_wrap=True)
        raise
    if data_dir is None and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        print_json(rates)
