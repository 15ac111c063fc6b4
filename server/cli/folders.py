"""Artifacts as folders: every file of the manifest, and the manifest last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mappers.artifact import MANIFEST_FILE, ROWS_FILE, TENSOR_FILE, Manifest, artifact_id
from server.cli.client import Client, CommandFailed

UPLOADED = (TENSOR_FILE, ROWS_FILE)
"""The one file that makes up an artifact which can be uploaded."""


def download_files(client: Client, record: Mapping[str, Any], folder: Path) -> int:
    """Writes the artifact that ``record`` shows into ``folder``; returns its size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    place = f"/v1/artifacts/{record['id']}/download"
    names = sorted(Path(name).name for name in record["manifest"]["files"])
    size = sum(client.download(place, folder / name, file=name) for name in names)
    return size + (folder / MANIFEST_FILE).write_text(json.dumps(record["manifest"]), encoding="utf-8")


def upload_folder(client: Client, folder: Path, manifest: Manifest, name: str) -> dict[str, Any]:
    """Sends what :func:`mappers.artifact.verify` found good to a server; returns the server's record of it.

    Tensors keep their id, for their file holds the manifest; a dataset is made again by the server, of the same rows.
    Raises CommandFailed for a report or activations, which no server takes from others, and where the id differs.
    """
    file = next((one for one in UPLOADED if one in manifest.files), None)
    if file is None or len(manifest.files) != 1:
        raise CommandFailed(f"{manifest.name!r} is a {manifest.kind}, which only the server that made it can hold")
    answer = client.upload("/v1/artifacts", folder / file, "application/octet-stream", name=name, kind=manifest.kind)
    if manifest.kind != "dataset" and answer["id"] != artifact_id(manifest):
        raise CommandFailed(f"the manifest is not the one in {file}: the server made {answer['id']} of it")
    return answer
