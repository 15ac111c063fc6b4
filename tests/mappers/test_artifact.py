from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from mappers.artifact import (
    HEADER_KEY,
    MANIFEST_FILE,
    TENSOR_FILE,
    Manifest,
    ModelBinding,
    artifact_id,
    canonical_json,
    embedded_manifest,
    read_manifest,
    seal,
    staged_file,
    verify,
)
from mappers.errors import ArtifactCorrupt
from mappers.sites import Site
from mappers.tensors import save_vector

CREATED = "2026-01-02T03:04:05+00:00"
BINDING = ModelBinding(model="llama", config_digest="a" * 64, width=4)


def vector_manifest(**changes: Any) -> Manifest:
    content = {
        "kind": "vector",
        "name": "refusal",
        "created_at": CREATED,
        "target": BINDING,
        "sites": ("resid_post.1",),
        "dtype": "float32",
    }
    return Manifest.model_validate(content | changes)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    save_vector(tmp_path / "v", {Site(1): torch.ones(4)}, vector_manifest())
    return tmp_path / "v"


def test_an_intact_artifact_is_read_back(stored: Path) -> None:
    manifest = verify(stored)
    assert manifest == read_manifest(stored)
    assert manifest.norms == {"resid_post.1": 2.0}
    assert sorted(path.name for path in stored.iterdir()) == [MANIFEST_FILE, TENSOR_FILE]


def test_artifacts_from_before_there_were_site_norms_keep_their_ids() -> None:
    old = vector_manifest(norms={"resid_post.1": 2.0})
    assert artifact_id(old) == "art_f2f95fb40bf34a1d25136626"
    assert artifact_id(vector_manifest(norms=old.norms, site_norms={"resid_post.1": 3.0})) != artifact_id(old)


def test_artifacts_from_before_weights_were_known_keep_their_ids() -> None:
    old = vector_manifest(norms={"resid_post.1": 2.0})
    assert b"weight_digest" not in canonical_json(old)
    known = old.model_copy(update={"target": old.target.model_copy(update={"weight_digest": "e" * 64})})
    assert artifact_id(known) != artifact_id(old)
    assert Manifest.model_validate_json(canonical_json(known)) == known


def test_a_changed_missing_or_linked_file_is_found(stored: Path, tmp_path: Path) -> None:
    tensors = stored / TENSOR_FILE
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactCorrupt, match=TENSOR_FILE):
        verify(stored)
    tensors.unlink()
    with pytest.raises(ArtifactCorrupt, match="missing"):
        verify(stored)
    (tmp_path / "elsewhere").write_bytes(content)
    tensors.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactCorrupt, match="plain file"):
        verify(stored)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"format": 2}', b"\xff\xfe", b'{"format":1,"kind":"vector","name":"x"}', b"[" * 5000],
)
def test_a_damaged_manifest_is_named(stored: Path, content: bytes) -> None:
    (stored / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=MANIFEST_FILE):
        read_manifest(stored)


def test_a_manifest_without_end_is_not_read_to_the_end(stored: Path) -> None:
    (stored / MANIFEST_FILE).write_bytes(b" " * (1 << 21))
    with pytest.raises(ArtifactCorrupt, match="larger"):
        read_manifest(stored)


def test_a_folder_without_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorrupt, match="cannot be read"):
        read_manifest(tmp_path)


def test_a_manifest_that_lists_nothing_proves_nothing(stored: Path) -> None:
    (stored / MANIFEST_FILE).write_bytes(canonical_json(vector_manifest()))
    with pytest.raises(ArtifactCorrupt, match="lists no files"):
        verify(stored)


def test_the_id_follows_from_the_content(stored: Path) -> None:
    manifest = verify(stored)
    assert artifact_id(manifest) == artifact_id(Manifest.model_validate_json(canonical_json(manifest)))
    renamed = Manifest.model_validate({**manifest.model_dump(), "name": "other"})
    assert artifact_id(renamed) != artifact_id(manifest)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    def write() -> None:
        with staged_file(tmp_path, "rows") as path:
            path.write_text("half")
            raise KeyboardInterrupt

    (tmp_path / "rows").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["rows"]
    assert (tmp_path / "rows").read_text() == "old"


def test_one_tensor_file_is_the_whole_artifact(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (stored / TENSOR_FILE).rename(tmp_path / "copy" / TENSOR_FILE)
    manifest = embedded_manifest(tmp_path / "copy" / TENSOR_FILE)
    assert manifest.files == {}
    sealed = seal(tmp_path / "copy", manifest)
    assert sealed == verify(tmp_path / "copy")
    assert artifact_id(sealed) == artifact_id(read_manifest(stored))


def _safetensors(header: dict[str, Any], data: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def test_uploads_that_are_not_artifacts_are_refused(tmp_path: Path) -> None:
    text = canonical_json(vector_manifest()).decode()
    good = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    cases = {
        "empty": b"",
        "rubbish": b"\xff" * 64,
        "no manifest": _safetensors({"resid_post.1": good}, bytes(16)),
        "bad manifest": _safetensors({"__metadata__": {HEADER_KEY: "{}"}, "resid_post.1": good}, bytes(16)),
        "other site": _safetensors({"__metadata__": {HEADER_KEY: text}, "resid_post.2": good}, bytes(16)),
        "other width": _safetensors(
            {"__metadata__": {HEADER_KEY: text}, "resid_post.1": {**good, "shape": [2], "data_offsets": [0, 8]}},
            bytes(8),
        ),
        "other dtype": _safetensors(
            {"__metadata__": {HEADER_KEY: text}, "resid_post.1": {**good, "dtype": "I32"}}, bytes(16)
        ),
        "cut off": _safetensors({"__metadata__": {HEADER_KEY: text}, "resid_post.1": good}, bytes(15)),
    }
    path = tmp_path / "upload.safetensors"
    for name, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(ArtifactCorrupt) as caught:
            embedded_manifest(path)
        assert str(tmp_path) not in caught.value.message, name
    path.write_bytes(_safetensors({"__metadata__": {HEADER_KEY: text}, "resid_post.1": good}, bytes(16)))
    assert embedded_manifest(path) == vector_manifest()


MAPPER = {"kind": "affine", "d_source": 4, "d_target": 4}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../x"},
        {"name": ""},
        {"name": "a" * 97},
        {"created_at": "2026-01-02T03:04:05"},
        {"created_at": "yesterday"},
        {"sites": ("resid_post.1", "resid_post.1")},
        {"sites": ("mlp.1",)},
        {"sites": ()},
        {"target": None},
        {"dtype": None},
        {"dtype": "float16"},
        {"kind": "activations", "target": None},
        {"kind": "activations", "mapper": MAPPER},
        {"files": {f"f{number}": {"sha256": "0" * 64, "size": 1} for number in range(401)}},
        {"mapper": MAPPER},
        {"kind": "switch"},
        {"kind": "dataset"},
        {"kind": "mapper", "mapper": MAPPER},
        {"kind": "switch", "mapper": {**MAPPER, "d_target": 5}},
        {"kind": "switch", "mapper": {**MAPPER, "d_source": 5}},
        {"effect": {"rate": float("nan")}},
        {"training": {"loss": float("inf")}},
        {"training": {"text": "x" * 70_000}},
        {"files": {"../escape": {"sha256": "0" * 64, "size": 1}}},
        {"files": {"x": {"sha256": "0" * 64, "size": -1}}},
        {"format": 2},
        {"extra": 1},
    ],
)
def test_contradictions_and_unbounded_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((ValidationError, ValueError)):
        vector_manifest(**changes)
