from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from mappers.artifact import TENSOR_FILE
from mappers.errors import ArtifactCorrupt
from mappers.manifest import ModelBinding
from mappers.sites import Site
from server.registry.exports import export_control_vector
from server.registry.gguf import read_control_vector
from server.registry.imports import import_upload

TARGET = ModelBinding(model="fake", config_digest="1" * 64, width=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "file"
    source.write_bytes(save({"direction.1": np.arange(4, dtype="<f4"), "direction.10": np.ones(4, dtype="<f4")}))
    (tmp_path / "made").mkdir()
    import_upload(source, tmp_path / "made", name="v", created_at="2026-01-02T03:04:05+00:00", target=TARGET)
    return tmp_path / "made"


def test_a_stored_vector_becomes_a_control_vector(folder: Path, tmp_path: Path):
    (tmp_path / "out.gguf").write_bytes(export_control_vector(folder))
    vectors = read_control_vector(tmp_path / "out.gguf")
    assert {site: vector.tolist() for site, vector in vectors.items()} == {Site(1): [0, 1, 2, 3], Site(10): [1] * 4}


def test_a_changed_artifact_is_not_exported(folder: Path):
    with (folder / TENSOR_FILE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactCorrupt):
        export_control_vector(folder)
