"""``interlock keys``: issue API keys of a running server, list them and take them back."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.client import DEFAULT_URL, Client, Key, Url
from server.cli.json_file import read_object
from server.cli.output import AsJson, age, print_json, print_table
from server.cli.root import command_app

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

app = command_app(no_args_is_help=True, help="Issue API keys, list them and take them back.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What to call the key.")],
    scopes: Annotated[
        list[str],
        typer.Option("--scope", metavar="SCOPE", help="infer, steer, unswitch, train, admin or metrics. Repeatable."),
    ],
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="Such as 90d, 12h, 30m. Default: never.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help="Its default profile, in place of the model's.")
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option(
            "--limits",
            exists=True,
            dir_okay=False,
            help='JSON file: {"max_strength", "strengths": {NAME: {"min", "max"}}}.',
        ),
    ] = None,
    owner: Annotated[
        str | None, typer.Option("--owner", help="Owner of an earlier key, whose things the new one shall see.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Issue a key. Its secret is printed this once and kept nowhere.

    Example: interlock keys create web --scope infer --scope steer --expires 90d
    """
    body: dict[str, Any] = {"name": name, "scopes": scopes, "profile": profile, "owner": owner}
    if expires is not None:
        body["expires_in_s"] = _seconds(expires)
    if limits is not None:
        body["limits"] = read_object(limits, "--limits")
    with Client(url, api_key) as client:
        made = client.post("/v1/keys", body)
    if as_json:
        print_json(made)
    else:
        typer.echo(f"{made['id']} {made['name']}: {', '.join(made['scopes'])}", err=True)
        typer.echo(made["secret"])


@app.command("list")
def list_keys(url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """List issued keys, newest first. Secrets are not kept and so not shown."""
    with Client(url, api_key) as client:
        answer = client.get("/v1/keys")
    if as_json:
        print_json(answer)
        return
    rows = [
        (key["id"], key["name"], ", ".join(key["scopes"]), key["profile"], _until(key), age(key["last_used_at"]))
        for key in answer["data"]
    ]
    print_table("API keys", ("id", "name", "scopes", "profile", "expires", "last used"), rows)


@app.command()
def delete(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key, as `interlock keys list` shows it.")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Take a key back: its next request is refused."""
    with Client(url, api_key) as client:
        client.delete(f"/v1/keys/{key_id}")
    if as_json:
        print_json({"deleted": key_id})
    else:
        typer.echo(f"deleted {key_id}")


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None:
        raise typer.BadParameter("write a number and one of s, m, h, d, such as 90d", param_hint="--expires")
    return int(found[1]) * _UNITS[found[2]]


def _until(key: dict[str, Any]) -> str:
    if key["expires_at"] is None:
        return "never"
    return datetime.fromtimestamp(key["expires_at"], UTC).strftime("%Y-%m-%d %H:%M UTC")
