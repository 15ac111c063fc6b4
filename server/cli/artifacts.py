"""``interlock artifacts``: list, show, import, export and delete what a running server keeps; see also ``registry``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mappers.artifact import verify
from server.cli.client import DEFAULT_URL, Client, CommandFailed, Key, Url
from server.cli.folders import download_files, upload_folder
from server.cli.hub import app as hub_app
from server.cli.output import AsJson, age, byte_size, print_fields, print_json, print_table
from server.cli.registry import Artifact
from server.cli.registry import app as registry_app
from server.cli.root import command_app

SUFFIXES = {"dataset": ".jsonl", "report": ".json", "activations": ""}


class FileFormat(StrEnum):
    """What is exported: the server's own file, a folder with the manifest, or a control vector of llama.cpp's."""

    NATIVE = "native"
    FOLDER = "folder"
    GGUF = "gguf"


app = command_app(
    no_args_is_help=True,
    help="List, import and export switches, vectors, mappers, probes, datasets, reports and activations.",
)
app.add_typer(registry_app)
app.add_typer(hub_app)


@app.command("list")
def list_artifacts(
    kind: Annotated[str | None, typer.Option("--kind", help="One kind only, such as switch or report.")] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List artifacts, newest first."""
    with Client(url, api_key) as client:
        answer = client.get("/v1/artifacts", kind=kind)
    if as_json:
        print_json(answer)
        return
    rows = [
        (entry["name"], entry["kind"], entry["id"], byte_size(entry.get("size")), age(entry.get("created_at")))
        for entry in answer["data"]
    ]
    print_table("Artifacts", ("name", "kind", "id", "size", "created"), rows)


@app.command()
def show(artifact: Artifact, url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Show one artifact with its manifest."""
    with Client(url, api_key) as client:
        answer = client.get(f"/v1/artifacts/{artifact}")
    if as_json:
        print_json(answer)
    else:
        print_fields(answer)


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(exists=True, help="safetensors, GGUF, JSON lines, text, or a folder.")],
    name: Annotated[str | None, typer.Option("--name", help="Name to give it. Default: that of the file.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Plain text, as a file named *.txt is anyway.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Import a file: what it holds is read from its content; only plain text is known by its name or by --text.

    safetensors written by `interlock artifacts export`, safetensors or GGUF with one vector for each layer, a dataset
    as JSON lines ({"messages": [...]}, {"prompt", "completion"} or {"text"}), or plain text, cut into passages. A
    folder that `interlock artifacts export --format folder` wrote is checked against its manifest first.
    """
    content_type = "text/plain" if text or file.suffix.lower() == ".txt" else "application/octet-stream"
    with Client(url, api_key) as client:
        if file.is_dir():
            manifest = verify(file)
            answer = upload_folder(client, file, manifest, name or manifest.name)
        else:
            answer = client.upload("/v1/artifacts", file, content_type, name=name or file.stem)
    if as_json:
        print_json(answer)
    else:
        typer.echo(f"{answer['name']}: {answer['kind']} {answer['id']}")


@app.command()
def export(
    artifact: Artifact,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write. Default: the artifact's name here, with its suffix.")
    ] = None,
    file_format: Annotated[
        FileFormat,
        typer.Option(
            "--format", help="native: safetensors or JSON lines. folder: with manifest. gguf: control vector."
        ),
    ] = FileFormat.NATIVE,
    file: Annotated[
        str | None, typer.Option("--file", help="One of a report's or collection's files, such as heatmap.png.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Export an artifact as one file that can be imported again, here or on another server.

    A GGUF control vector is for other programs: its manifest stays behind. Activations become a folder of shards with
    their manifest, for programs to read; they cannot be imported.
    """
    with Client(url, api_key) as client:
        record = client.get(f"/v1/artifacts/{artifact}")
        name = Path(record["name"]).name
        suffix = _suffix(record["kind"], file_format)
        target = out or Path(f"{name}-{file}" if file else name + suffix)
        if target.exists() and not force:
            raise CommandFailed(f"{target} exists: give --out or --force")
        chosen = FileFormat.GGUF.value if file_format is FileFormat.GGUF else None
        place = f"/v1/artifacts/{record['id']}/download"
        shards = record["kind"] == "activations" and file_format is FileFormat.NATIVE
        if file is None and (shards or file_format is FileFormat.FOLDER):
            size = download_files(client, record, target)
        else:
            size = client.download(place, target, file=file, format=chosen)
    if as_json:
        print_json({"id": record["id"], "name": record["name"], "path": str(target), "size": size})
    else:
        typer.echo(f"{target}: {byte_size(size)}")


@app.command()
def delete(artifact: Artifact, url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Delete an artifact; refused while another was made from it."""
    with Client(url, api_key) as client:
        client.delete(f"/v1/artifacts/{artifact}")
    if as_json:
        print_json({"deleted": artifact})
    else:
        typer.echo(f"deleted {artifact}")


def _suffix(kind: str, file_format: FileFormat) -> str:
    if file_format is FileFormat.NATIVE:
        return SUFFIXES.get(kind, ".safetensors")
    return ".gguf" if file_format is FileFormat.GGUF else ""
