"""The digest is that of the weights: not of how they lie in files, and of nothing less than all of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mappers.weight_digest import weight_digest

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, dtype=np.float16)}


def digest_of(folder: Path, weights=WEIGHTS, metadata=None) -> str | None:
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata=metadata)
    return weight_digest(folder)


def test_files_and_headers_do_not_matter(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for name, values in WEIGHTS.items():
        save_file({name: values}, shards / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in WEIGHTS}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    whole = digest_of(tmp_path / "whole")
    assert whole is not None
    assert weight_digest(shards) == whole == digest_of(tmp_path / "told", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "changed",
    [
        {"a": WEIGHTS["a"] + np.float32(1e-6), "b": WEIGHTS["b"]},
        {"a": WEIGHTS["a"].reshape(3, 2), "b": WEIGHTS["b"]},
        {"a": WEIGHTS["a"].view(np.int32), "b": WEIGHTS["b"]},
        {"c": WEIGHTS["a"], "b": WEIGHTS["b"]},
        {"a": WEIGHTS["a"]},
    ],
)
def test_every_change_matters(tmp_path, changed):
    assert digest_of(tmp_path / "changed", changed) != digest_of(tmp_path / "plain")


def test_no_checkpoint_has_no_digest(tmp_path):
    assert weight_digest(tmp_path) is None
