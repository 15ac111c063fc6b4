"""``interlock policy``: the rules of a running server, read and replaced as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from server.cli.client import DEFAULT_URL, Client, Key, Url
from server.cli.json_file import read_object
from server.cli.output import AsJson, print_json
from server.cli.root import command_app

app = command_app(no_args_is_help=True, help="Show the policy, and replace it.")


@app.command()
def show(
    version: Annotated[int | None, typer.Option("--version", min=0, help="An earlier version.")] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show the policy as JSON that can be edited and given to `interlock policy put`."""
    with Client(url, api_key) as client:
        answer = client.get("/v1/policy", version=version)
    if as_json:
        print_json(answer)
    else:
        typer.echo(json.dumps({"version": answer["version"], "document": answer["document"]}, indent=2))


@app.command()
def put(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help='JSON file: {"version", "document"}, as shown.')
    ],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Replace the policy; refused where somebody else has replaced the version that FILE was made from.

    Example: interlock policy show > policy.json, edit it, interlock policy put policy.json
    """
    with Client(url, api_key) as client:
        answer = client.put("/v1/policy", read_object(file, "FILE"))
    if as_json:
        print_json(answer)
    else:
        typer.echo(f"the policy is at version {answer['version']}")
