"""``interlock audit``: read the audit log, and verify its chain on a running server or in a data directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.client import DEFAULT_URL, Client, CommandFailed, Key, Url
from server.cli.output import AsJson, age, print_json, print_table
from server.cli.root import command_app

app = command_app(no_args_is_help=True, help="Read the audit log and verify its chain.")


@app.command("list")
def list_entries(
    action: Annotated[str | None, typer.Option("--action", help="Only this, such as default.off or refused.")] = None,
    actor: Annotated[str | None, typer.Option("--actor", metavar="KEY_ID", help="Only what this key did.")] = None,
    request_id: Annotated[str | None, typer.Option("--request", metavar="ID", help="Only on this request.")] = None,
    before: Annotated[int | None, typer.Option("--before", min=1, help="Only entries with lower numbers.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many.")] = 50,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List entries, newest first."""
    with Client(url, api_key) as client:
        answer = client.get("/v1/audit", action=action, actor=actor, request_id=request_id, before=before, limit=limit)
    if as_json:
        print_json(answer)
        return
    rows = [(one["sequence"], age(one["at"]), one["action"], one["actor"], one["detail"]) for one in answer["data"]]
    print_table("Audit log", ("number", "when", "action", "key", "detail"), rows)
    if answer["next"] is not None:
        typer.echo(f"more: --before {answer['next']}", err=True)


@app.command()
def verify(
    head: Annotated[
        str | None, typer.Option("--head", metavar="NUMBER:DIGEST", help="End of the log at an earlier verification.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", exists=True, file_okay=False, help="Verify here instead of asking a server."),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the chain of digests; exit code 1 where it is broken.

    Whoever can write the database can cut entries off at the end, or write all of them anew: keep the head that this
    prints somewhere else and give it next time with --head.
    """
    kept = _head(head)
    if data_dir is not None:
        found = _verify_offline(data_dir, kept)
    else:
        with Client(url, api_key) as client:
            found = client.get("/v1/audit/verify", **kept)
    if as_json:
        print_json(found)
    else:
        end = found["head"]
        typer.echo(f"{found['entries']} entries hold together; head {end['sequence']}:{end['digest']}")
    if not found["whole"]:
        raise CommandFailed(f"the audit log is broken: {found['problem']}")


def _verify_offline(data_dir: Path, kept: dict[str, Any]) -> dict[str, Any]:
    from sqlalchemy.exc import SQLAlchemyError  # only this use needs the database

    from server.data_dir import DATABASE_FILE
    from server.policy.audit import Head, verify
    from server.registry.database import Database

    file = data_dir / DATABASE_FILE
    if not file.is_file():
        raise CommandFailed(f"--data-dir: there is no {DATABASE_FILE} in {data_dir}")
    database = Database(f"sqlite:///file:{file.absolute()}?mode=ro&uri=true")
    try:
        found = verify(database, Head(**kept) if kept else None)
    except SQLAlchemyError as error:
        raise CommandFailed(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
    finally:
        database.close()
    return {**found.report()}


def _head(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    found = re.fullmatch("([1-9][0-9]{0,15}):([0-9a-f]{64})", text)
    if found is None:
        raise typer.BadParameter("write NUMBER:DIGEST as this command printed it", param_hint="--head")
    return {"sequence": int(found[1]), "digest": found[2]}
