"""``interlock doctor``: what is wrong here, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mappers.errors import InterlockError
from server.cli.client import DEFAULT_URL, Client, Key
from server.cli.output import AsJson, print_json, print_table
from server.cli.root import command_app
from server.settings import check_variables, default_data_dir
from server.sizes import binary_size

if TYPE_CHECKING:
    from server.doctor.finding import Finding

app = command_app()

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", envvar="INTERLOCK_DATA_DIR", help="Data directory to examine.", show_default="as serve's"
    ),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        envvar="INTERLOCK_DATABASE_URL",
        help="Database to examine instead of the file in the data directory.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", envvar="INTERLOCK_MODEL", help="Model to examine too: a local folder.", show_default=False),
]
Server = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="INTERLOCK_URL", help="Server that has to be ready.", show_default=f"{DEFAULT_URL}, if any"
    ),
]


@app.command()
def doctor(
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    model: Model = None,
    url: Server = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Examine packages, device, data directory, artifacts, audit log, model and server.

    Nothing is changed, and a running server is not disturbed. Exit code 0 means that nothing failed; warnings are no
    failure.
    """
    findings = list(_examine(data_dir or default_data_dir(), database_url, model, url, api_key))
    failed = sum(finding.status == "fail" for finding in findings)
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings], "failed": failed})
    else:
        rows = [(one.status, one.check, one.found, one.remedy) for one in findings]
        print_table("Interlock, examined", ("state", "check", "found", "remedy"), rows)
    raise typer.Exit(1 if failed else 0)


def _examine(
    data_dir: Path, database_url: str | None, model: str | None, url: str | None, key: str | None
) -> Iterator[Finding]:
    # Imported here: torch takes seconds, which a wrong option should not cost.
    from server.doctor.data import examine_data
    from server.doctor.machine import examine_machine
    from server.doctor.model import examine_model

    yield from examine_machine()
    yield from _environment()
    yield from examine_data(data_dir.expanduser().absolute(), database_url)
    if model is not None:
        yield from examine_model(model)
    yield from _server(url, key)


def _environment() -> Iterator[Finding]:
    from server.doctor.finding import Finding

    try:
        check_variables(os.environ)
    except InterlockError as error:
        yield Finding("environment", "fail", error.message, "correct or unset the variable: serve refuses it")


def _server(url: str | None, key: str | None) -> Iterator[Finding]:
    from server.doctor.finding import Finding

    place = url or DEFAULT_URL
    with Client(place, key) as client:
        try:
            client.get("/health/live")
        except InterlockError as error:
            if url is not None:
                yield Finding("server", "fail", error.message, "start it, or correct --url")
            else:
                yield Finding("server", "ok", f"none answers at {place}")
            return
        try:
            client.get("/health/ready")
            told = client.get("/v1/capabilities")
        except InterlockError as error:
            yield Finding("server", "fail", error.message, "see the reason; its log has more")
            return
    served, limits = told["model"], told["limits"]
    default = told["default_profile"] or told["default_switch"] or "nothing"
    yield Finding(
        "server",
        "ok",
        f"ready at {place}: {served['name']} on {served['device']} in {served['dtype']}, "
        f"{limits['max_batch']} places of {limits['context']} tokens, memory planned for keys and values "
        f"{binary_size(limits['kv_bytes'])}, for prefixes {binary_size(limits['prefix_bytes'])}, "
        f"on by default: {default}",
    )
