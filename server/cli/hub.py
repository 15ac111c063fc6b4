"""``interlock artifacts push|pull``: artifacts to and from a repository of a model hub, because the operator says so.

Nothing that a request says leads here. What is pulled is one commit, named in full; only the manifest and the files of
the formats that the server itself takes are fetched, and all of them are checked before the server sees them. The hub
and its token are huggingface_hub's own settings (``HF_ENDPOINT``, ``HF_TOKEN``, ``hf auth login``).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mappers.artifact import MANIFEST_FILE, ROWS_FILE, TENSOR_FILE, Manifest, verify
from mappers.errors import ArtifactCorrupt
from server.cli.client import DEFAULT_URL, Client, CommandFailed, Key, Url
from server.cli.folders import download_files, upload_folder
from server.cli.output import AsJson, print_json
from server.cli.registry import Artifact

app = typer.Typer()
"""Taken into ``interlock artifacts``."""

CARD_FILE = "README.md"
MAX_BYTES = 64 << 20
_FETCHED = (MANIFEST_FILE, TENSOR_FILE, ROWS_FILE)
_COMMIT = re.compile("[0-9a-f]{40}")

Repository = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository of the hub.")]


@app.command()
def push(
    artifact: Artifact,
    repository: Repository,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Write an artifact with its manifest and a model card to a hub repository, made where it is not there."""
    with tempfile.TemporaryDirectory() as place, Client(url, api_key) as client:
        folder = Path(place)
        record = client.get(f"/v1/artifacts/{artifact}")
        lineage = client.get(f"/v1/artifacts/{record['id']}/lineage")
        download_files(client, record, folder)
        manifest = verify(folder)
        from server.registry.cards import model_card  # huggingface_hub takes long to import

        (folder / CARD_FILE).write_text(model_card(manifest, lineage["artifacts"]), encoding="utf-8")
        with _hub() as api:
            api.create_repo(repository, private=not public, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=f"{manifest.kind} {manifest.name} {record['id']}",
            )
    if as_json:
        print_json({"id": record["id"], "repository": repository, "revision": commit.oid})
    else:
        typer.echo(f"{repository} at {commit.oid}: {manifest.kind} {record['id']}")


@app.command()
def pull(
    repository: Repository,
    revision: Annotated[
        str | None, typer.Option("--revision", help="The commit to take, all 40 digits of it.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name to give it. Default: its own.")] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Import an artifact from one commit of a hub repository; what it fetched is checked before it is sent on."""
    with tempfile.TemporaryDirectory() as place, Client(url, api_key) as client:
        manifest = _fetch(repository, revision, Path(place))
        answer = upload_folder(client, Path(place), manifest, name or manifest.name)
    if as_json:
        print_json({**answer, "repository": repository, "revision": revision})
    else:
        typer.echo(f"{answer['name']}: {answer['kind']} {answer['id']} from {repository} at {revision}")


def _fetch(repository: str, revision: str | None, folder: Path) -> Manifest:
    with _hub() as api:
        if revision is None or _COMMIT.fullmatch(revision) is None:
            newest = api.model_info(repository).sha
            raise CommandFailed(
                f"--revision: name a commit in full, so that what you looked at is what you get; the newest is {newest}"
            )
        told = api.model_info(repository, revision=revision, files_metadata=True)
        found = {one.rfilename: one.size for one in told.siblings or ()}
        wanted = [file for file in _FETCHED if file in found]
        if MANIFEST_FILE not in wanted:
            raise CommandFailed(f"{repository} holds no {MANIFEST_FILE} at {revision}: it is no artifact of Interlock")
        if any((found[file] or 0) > MAX_BYTES for file in wanted):
            raise CommandFailed(f"{repository} holds a file of more than {MAX_BYTES} bytes: no server takes it")
        for file in wanted:
            api.hf_hub_download(repository, file, revision=revision, local_dir=folder)
    try:
        return verify(folder)
    except ArtifactCorrupt as error:
        raise CommandFailed(f"{repository} at {revision}: {error.message}") from None


@contextmanager
def _hub() -> Iterator[Any]:
    """The hub's client, its errors as ours."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield HfApi()
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CommandFailed(f"the hub: {lines[0]}") from error
