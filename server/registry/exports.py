"""Artifacts as files of other projects' formats."""

from __future__ import annotations

from pathlib import Path

from safetensors.numpy import load_file

from mappers.artifact import TENSOR_FILE, verify
from mappers.sites import Site
from server.registry.gguf import control_vector


def export_control_vector(folder: Path) -> bytes:
    """A stored vector as a GGUF control vector; raises ArtifactCorrupt where the folder was changed."""
    manifest = verify(folder)
    assert manifest.target is not None
    tensors = load_file(folder / TENSOR_FILE)
    return control_vector({Site.parse(name): values for name, values in tensors.items()}, manifest.target.model)
