"""``interlock profiles``: named bundles of interventions of a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.client import DEFAULT_URL, Client, Key, Url
from server.cli.json_file import read_object
from server.cli.output import AsJson, age, print_fields, print_json, print_table
from server.cli.root import command_app

Profile = Annotated[str, typer.Argument(metavar="NAME", help="Name of the profile.")]

app = command_app(no_args_is_help=True, help="Write named bundles of interventions, also served as models.")


@app.command("list")
def list_profiles(url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """List the profiles that this key may use."""
    with Client(url, api_key) as client:
        answer = client.get("/v1/profiles")
    if as_json:
        print_json(answer)
        return
    rows = [(one["name"], one["model"], one["owner"], one["shared"], age(one["updated_at"])) for one in answer["data"]]
    print_table("Profiles", ("name", "served as", "owner", "shared", "written"), rows)


@app.command()
def show(profile: Profile, url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Show what a profile does, and the artifacts it is bound to."""
    with Client(url, api_key) as client:
        _report(client.get(f"/v1/profiles/{profile}"), as_json)


@app.command()
def put(
    profile: Profile,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", exists=True, dir_okay=False, help='JSON file: {"safety_switch", "steering"}, as in a request.'
        ),
    ] = None,
    switch: Annotated[str | None, typer.Option("--switch", help="A switch at strength 1, in place of a file.")] = None,
    shared: Annotated[bool, typer.Option("--shared", help="Usable by every key; takes the scope admin.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Write a profile, in place of an earlier one of that name; without --file and --switch one that does nothing.

    Example: interlock profiles put guarded --switch safe --shared
    """
    if file is not None and switch is not None:
        raise typer.BadParameter("give --file or --switch, not both", param_hint="--switch")
    body: dict[str, Any] = {} if file is None else read_object(file, "--file")
    if switch is not None:
        body["safety_switch"] = switch
    with Client(url, api_key) as client:
        _report(client.put(f"/v1/profiles/{profile}", {**body, "shared": shared}), as_json)


@app.command()
def delete(profile: Profile, url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Delete a profile; refused while it is a default."""
    with Client(url, api_key) as client:
        client.delete(f"/v1/profiles/{profile}")
    if as_json:
        print_json({"deleted": profile})
    else:
        typer.echo(f"deleted {profile}")


def _report(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        print_fields(answer)
