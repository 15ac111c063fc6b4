"""Uploads made into artifacts: a file that somebody sent becomes a sealed folder ready to be registered.

What the file is, is read from its first bytes, never from a name: safetensors of ours (with the manifest in the
header), other safetensors and GGUF with one vector a layer, or JSON lines as a dataset. Plain text has nothing to know
it by: it has to be said. All tensors end as float32.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from mappers.artifact import HEADER_KEY, TENSOR_FILE, canonical_json, embedded_manifest, seal, staged_file
from mappers.dataset import write_dataset
from mappers.errors import ArtifactMismatch, DataError
from mappers.manifest import Manifest, ModelBinding
from mappers.passages import passages
from mappers.sites import Site
from server.registry.gguf import MAGIC, MAX_TENSORS, parse_direction, read_control_vector

MAX_BYTES = 64 << 20

_MAX_LINE_READ = (1 << 18) + 2
_VECTOR_DTYPES = ("F32", "F16")
_MAX_HEADER = 100_000_000
_MAX_NORM = 1e18
"""Beyond it the squared norm overflows float32."""


def import_upload(
    source: Path, folder: Path, *, name: str, created_at: str, target: ModelBinding | None, text: bool = False
) -> Manifest:
    """Makes the file ``source`` (at most 64 MiB) an artifact in the empty ``folder`` and returns its manifest.

    ``text`` says that the file is plain text, which becomes a dataset of passages (:mod:`mappers.passages`).
    ``target`` is the model that a vector without a manifest is for; it must have the vector's width. ``created_at`` is
    ISO 8601 with a time zone. Raises DataError, ArtifactCorrupt or ArtifactMismatch, with the remedy.
    """
    size = source.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"the file has {size} bytes; at most {MAX_BYTES} are taken: split it")
    if text:
        return import_text(source, folder, name=name, created_at=created_at)
    with source.open("rb") as file:
        start = file.read(9)
    if start.startswith(MAGIC):
        vectors = read_control_vector(source)
        return _write_vector(folder, vectors, source, name=name, created_at=created_at, target=target)
    if len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _MAX_HEADER:
        return import_safetensors(source, folder, name=name, created_at=created_at, target=target)
    return import_dataset(source, folder, name=name, created_at=created_at)


def import_safetensors(
    source: Path, folder: Path, *, name: str, created_at: str, target: ModelBinding | None
) -> Manifest:
    """A file of ours keeps its manifest, and with it its id; any other must hold ``direction.N`` or ``resid_post.N``.

    Arguments and errors as for :func:`import_upload`.
    """
    try:
        with safe_open(source, framework="numpy") as file:
            ours = HEADER_KEY in (file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise DataError(f"the safetensors file cannot be read: {error}") from error
    if not ours:
        vectors = _plain_vectors(source)
        return _write_vector(folder, vectors, source, name=name, created_at=created_at, target=target)
    manifest = embedded_manifest(source)
    for tensor, values in load_file(source).items():
        _check_finite(tensor, values)
    with staged_file(folder, TENSOR_FILE) as path:
        shutil.copyfile(source, path)
    return seal(folder, manifest)


def import_dataset(source: Path, folder: Path, *, name: str, created_at: str) -> Manifest:
    """JSON lines as a dataset; raises DataError naming the line."""
    with source.open("rb") as file:
        lines = iter(lambda: file.readline(_MAX_LINE_READ), b"")
        return write_dataset(folder, lines, name=name, created_at=created_at)


def import_text(source: Path, folder: Path, *, name: str, created_at: str) -> Manifest:
    """UTF-8 text as a dataset with a row for each passage; raises DataError for anything else, or no text at all."""
    try:
        with source.open(encoding="utf-8-sig") as file:
            lines = (json.dumps({"text": passage}, ensure_ascii=False).encode() for passage in passages(file))
            return write_dataset(folder, lines, name=name, created_at=created_at)
    except UnicodeDecodeError as error:
        raise DataError(f"the file is not text in UTF-8 ({error.reason}): convert it") from error


def _plain_vectors(source: Path) -> dict[Site, NDArray[np.float32]]:
    with safe_open(source, framework="numpy") as file:
        names = list(file.keys())
        if not 1 <= len(names) <= MAX_TENSORS:
            raise DataError(f"a vector file has 1 to {MAX_TENSORS} tensors, this one has {len(names)}")
        sites = {name: parse_direction(name) for name in names}
        for name in names:
            part = file.get_slice(name)
            if len(part.get_shape()) != 1 or part.get_dtype() not in _VECTOR_DTYPES:
                raise DataError(
                    f"tensor {name!r} is {part.get_dtype()} of shape {part.get_shape()}; write 1-D F32 or F16"
                )
        vectors = {sites[name]: file.get_tensor(name).astype(np.float32) for name in names}
    if len(vectors) != len(names):
        raise DataError("the file names a layer twice, as direction.N and as resid_post.N: keep one")
    for site, vector in vectors.items():
        _check_finite(str(site), vector)
    return vectors


def _write_vector(
    folder: Path,
    vectors: Mapping[Site, NDArray[np.float32]],
    source: Path,
    *,
    name: str,
    created_at: str,
    target: ModelBinding | None,
) -> Manifest:
    if target is None:
        raise ArtifactMismatch("the file does not say which model its vectors are for: name the target model")
    for site, vector in vectors.items():
        if len(vector) != target.width:
            raise ArtifactMismatch(
                f"the vector of {site} has width {len(vector)}, but {target.model!r} has width {target.width}: "
                "import it on a server of the model it was made for"
            )
    norms = {str(site): float(np.linalg.norm(vector.astype(np.float64))) for site, vector in vectors.items()}
    longest = max(norms, key=lambda site: norms[site])
    if norms[longest] > _MAX_NORM:
        raise DataError(f"the vector of {longest} has the norm {norms[longest]:.3g}: at most {_MAX_NORM:g} can be used")
    manifest = Manifest(
        kind="vector",
        name=name,
        created_at=created_at,
        target=target,
        sites=tuple(str(site) for site in sorted(vectors)),
        dtype="float32",
        training={"imported_sha256": sha256(source.read_bytes()).hexdigest()},
        norms=norms,
    )
    header = {HEADER_KEY: canonical_json(manifest, with_files=False).decode()}
    with staged_file(folder, TENSOR_FILE) as path:
        save_file({str(site): vectors[site] for site in sorted(vectors)}, path, metadata=header)
    return seal(folder, manifest)


def _check_finite(name: str, values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"tensor {name!r} holds NaN or infinite values")
