"""Activations on disk: safetensors files of bounded size and a manifest, made by :mod:`mappers.activations.sharding`.

Each shard holds, for N tokens, one tensor ``h_ND`` a site under the site's name (float16 or float32) and three int32
tensors that say which tokens they are: ``token_ids``, ``text_index`` (the row of the dataset) and ``position`` (index
of the token in the text as the model reads it). With them tokens of two models can be paired again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mappers.artifact import read_manifest, verify
from mappers.errors import ArtifactCorrupt, ArtifactMismatch
from mappers.manifest import Manifest
from mappers.sites import Site

INDEX_TENSORS = ("token_ids", "text_index", "position")


def shard_name(number: int) -> str:
    """The file of the shard of that number, from 0; in the order of their names shards are in order."""
    return f"activations-{number:05d}.safetensors"


@dataclass(frozen=True, slots=True)
class StoredTokens:
    """N tokens of one shard: int32 indices and, at each site, ``h_ND`` in the dtype of the file, on the CPU."""

    token_ids_N: Tensor
    text_index_N: Tensor
    position_N: Tensor
    hidden: dict[Site, Tensor]


def read_activations(
    folder: Path, *, sites: Sequence[Site] | None = None, tokens: int = 4096, verify_files: bool = True
) -> Iterator[StoredTokens]:
    """Batches of at most ``tokens`` tokens in the order they were written; memory is that of one batch.

    ``sites`` None means all. ``verify_files`` checks every file's sha256 before the first batch. Raises ArtifactCorrupt
    for damaged files, ArtifactMismatch for another kind of artifact or a site that was not collected.
    """
    manifest = verify(folder) if verify_files else read_manifest(folder)
    if manifest.kind != "activations":
        raise ArtifactMismatch(f"{manifest.name!r} is a {manifest.kind}: collect activations first")
    wanted = manifest.target_sites if sites is None else tuple(sites)
    if missing := [str(site) for site in wanted if str(site) not in manifest.sites]:
        raise ArtifactMismatch(f"{manifest.name!r} holds {', '.join(manifest.sites)}, not {', '.join(missing)}")
    for name in sorted(manifest.files):
        try:
            with safe_open(folder / name, framework="pt") as file:
                yield from _read_shard(file, manifest, wanted, tokens)
        except (SafetensorError, OSError) as error:
            raise ArtifactCorrupt(f"{name} of {manifest.name!r} cannot be read: collect again") from error


def _read_shard(file: Any, manifest: Manifest, sites: Sequence[Site], tokens: int) -> Iterator[StoredTokens]:
    parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    expected = dict.fromkeys(INDEX_TENSORS, "I32") | dict.fromkeys(manifest.sites, _CODES[manifest.dtype])
    count = parts["position"].get_shape()[0] if "position" in parts else 0
    if {name: part.get_dtype() for name, part in parts.items()} != expected or any(
        part.get_shape()[0] != count for part in parts.values()
    ):
        raise ArtifactCorrupt(f"a shard of {manifest.name!r} holds other tensors than its manifest says: collect again")
    for start in range(0, count, tokens):
        chosen = slice(start, min(start + tokens, count))
        token_ids_N, text_index_N, position_N = (parts[name][chosen] for name in INDEX_TENSORS)
        hidden = {site: parts[str(site)][chosen] for site in sites}
        yield StoredTokens(token_ids_N, text_index_N, position_N, hidden)


_CODES = {"float16": "F16", "float32": "F32", None: ""}
