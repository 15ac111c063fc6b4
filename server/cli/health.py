"""``interlock health``: the probe that container health checks call."""

from __future__ import annotations

import typer

from server.cli.client import DEFAULT_URL, Client, Key, Url
from server.cli.output import AsJson, print_json
from server.cli.root import command_app

app = command_app()


@app.command()
def health(url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Ask whether a server is ready; exit code 0 means yes."""
    with Client(url, api_key) as client:
        answer = client.get("/health/ready")
    if as_json:
        print_json(answer)
    else:
        typer.echo("ready")
