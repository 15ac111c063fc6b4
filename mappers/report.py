"""Reports as artifacts: what a job measured, as JSON with pictures beside it. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from mappers.artifact import seal, staged_file, verify
from mappers.errors import ArtifactCorrupt, ArtifactMismatch
from mappers.manifest import REPORT_FILE, Manifest


def save_report(
    folder: Path, content: Mapping[str, JsonValue], pictures: Mapping[str, bytes], manifest: Manifest
) -> Manifest:
    """Writes ``report.json``, the pictures (``<name>.png``) and then the manifest; returns it with ``files`` filled in.

    Raises ArtifactMismatch for a manifest of another kind, and ValueError for a number that JSON does not have.
    """
    if manifest.kind != "report":
        raise ArtifactMismatch(f"{manifest.name!r} is a {manifest.kind}, not a report")
    folder.mkdir(parents=True, exist_ok=True)
    files = {REPORT_FILE: json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"}
    for name, data in (files | {f"{name}.png": png for name, png in pictures.items()}).items():
        with staged_file(folder, name) as path:
            path.write_bytes(data)
    return seal(folder, manifest)


def load_report(folder: Path) -> tuple[Manifest, dict[str, JsonValue]]:
    """Reads and verifies what :func:`save_report` wrote, without the pictures.

    Raises ArtifactCorrupt for damaged files and ArtifactMismatch for an artifact of another kind.
    """
    manifest = verify(folder)
    if manifest.kind != "report":
        raise ArtifactMismatch(f"{manifest.name!r} is a {manifest.kind}, not a report")
    try:
        content = json.loads((folder / REPORT_FILE).read_bytes())
    except ValueError as error:
        raise ArtifactCorrupt(f"{REPORT_FILE} of {manifest.name!r} is not JSON") from error
    if not isinstance(content, dict):
        raise ArtifactCorrupt(f"{REPORT_FILE} of {manifest.name!r} is not a JSON object")
    return manifest, content
