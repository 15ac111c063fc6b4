"""An artifact on disk: a flat folder of files with ``manifest.json`` written last. No torch.

Files are written under a temporary name, synced, and renamed, so a crash leaves a folder without a manifest (not an
artifact) or a complete one. Nothing here follows a name out of the folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from mappers.errors import ArtifactCorrupt
from mappers.manifest import (
    ROWS_FILE,
    TENSOR_FILE,
    FileEntry,
    Manifest,
    ModelBinding,
    Parent,
    artifact_id,
    canonical_json,
)

__all__ = [
    "HEADER_KEY",
    "MANIFEST_FILE",
    "ROWS_FILE",
    "TENSOR_FILE",
    "Manifest",
    "ModelBinding",
    "Parent",
    "artifact_id",
    "canonical_json",
    "describe_file",
    "embedded_manifest",
    "read_manifest",
    "seal",
    "staged_file",
    "verify",
    "write_manifest",
]

MANIFEST_FILE = "manifest.json"
HEADER_KEY = "interlock"
"""Key of a safetensors header's metadata that holds the manifest without ``files``."""

_MAX_MANIFEST = 1 << 20
_CHUNK = 1 << 20


def read_manifest(folder: Path) -> Manifest:
    """Reads ``manifest.json`` without looking at the other files; raises ArtifactCorrupt where it is not one."""
    path = folder / MANIFEST_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_MANIFEST + 1)
    except OSError as error:
        raise ArtifactCorrupt(f"{MANIFEST_FILE} of {folder.name!r} cannot be read: {error.strerror}") from error
    if len(content) > _MAX_MANIFEST:
        raise ArtifactCorrupt(f"{MANIFEST_FILE} of {folder.name!r} is larger than {_MAX_MANIFEST} bytes")
    return _parse(content, f"{MANIFEST_FILE} of {folder.name!r}")


def embedded_manifest(path: Path) -> Manifest:
    """The manifest in a safetensors file's header, its ``files`` empty, checked against the tensors' names and shapes.

    Raises ArtifactCorrupt where the file is no safetensors file, carries no manifest, or holds other tensors.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = {part.get_dtype() for part in slices.values()}
    except SafetensorError as error:
        raise ArtifactCorrupt(f"not a safetensors file: {error}") from error
    except OSError as error:
        raise ArtifactCorrupt("the safetensors file cannot be read") from error
    if HEADER_KEY not in metadata:
        raise ArtifactCorrupt(
            f"the file's header has no {HEADER_KEY!r} entry: export it from Interlock, or say what it is"
        )
    manifest = _parse(metadata[HEADER_KEY].encode(), "the manifest in the file's header")
    if shapes != manifest.tensor_shapes() or dtypes != {"F32"}:
        raise ArtifactCorrupt("the file's tensors are not those its manifest describes (names, shapes, float32)")
    return manifest


def verify(folder: Path) -> Manifest:
    """Reads the manifest and checks size and sha256 of every file it lists; raises ArtifactCorrupt naming the file."""
    manifest = read_manifest(folder)
    if not manifest.files:
        raise ArtifactCorrupt(f"{MANIFEST_FILE} of {folder.name!r} lists no files")
    for name, expected in manifest.files.items():
        if describe_file(folder, name) != expected:
            raise ArtifactCorrupt(
                f"{name} of {manifest.name!r} is not what its manifest says: import or train it again"
            )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``manifest.json``, which makes the folder an artifact: every other file has to be there already."""
    with staged_file(folder, MANIFEST_FILE) as path:
        path.write_bytes(canonical_json(manifest))


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Fills ``files`` with what lies in the folder, writes the manifest and returns it as written."""
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST_FILE)
    files = {name: describe_file(folder, name) for name in names}
    sealed = Manifest.model_validate({**manifest.model_dump(), "files": files})
    write_manifest(folder, sealed)
    return sealed


@contextmanager
def staged_file(folder: Path, name: str) -> Iterator[Path]:
    """Gives a temporary path to write; afterwards it is synced and becomes ``folder/name``, or is gone on an error."""
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(folder / name)
        _sync(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _parse(content: bytes, what: str) -> Manifest:
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "content"
        raise ArtifactCorrupt(f"{what} is not valid: {place}: {first['msg']}") from error


def describe_file(folder: Path, name: str) -> FileEntry:
    """Size and sha256 of a plain file in ``folder``; raises ArtifactCorrupt where there is none that can be read."""
    path, digest, size = folder / name, sha256(), 0
    try:
        if path.is_symlink() or not path.is_file():
            raise ArtifactCorrupt(f"{name} of {folder.name!r} is missing or not a plain file")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise ArtifactCorrupt(f"{name} of {folder.name!r} cannot be read: {error.strerror}") from error
    return FileEntry(sha256=digest.hexdigest(), size=size)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
