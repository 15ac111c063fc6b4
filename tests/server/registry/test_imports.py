"""Uploads become artifacts of the right kind or are refused with the remedy."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mappers.artifact import artifact_id, verify
from mappers.dataset import dataset_rows
from mappers.errors import ArtifactCorrupt, ArtifactError, ArtifactMismatch, DataError
from mappers.manifest import ModelBinding
from mappers.sites import Site
from mappers.tensors import load_vector
from server.registry.imports import import_upload

TARGET = ModelBinding(model="tiny", config_digest="0" * 64, width=4)
CREATED = "2026-01-02T03:04:05+00:00"


@pytest.fixture
def backend() -> str:
    """What a file becomes does not depend on where its row is kept."""
    return "sqlite"


@pytest.fixture
def upload(tmp_path: Path, store):
    def run(
        content: bytes | dict[str, np.ndarray],
        name: str = "thing",
        target: ModelBinding | None = TARGET,
        text: bool = False,
    ):
        source = tmp_path / "upload"
        if isinstance(content, bytes):
            source.write_bytes(content)
        else:
            save_file(content, source)
        folder = store.new_staging()
        import_upload(source, folder, name=name, created_at=CREATED, target=target, text=text)
        return store.register(folder, name=name, owner=None)

    return run


def test_plain_vectors_are_bound_to_the_model(upload):
    record = upload({"direction.2": np.array([3, 0, 0, 4], np.float16), "resid_post.0": np.ones(4, np.float32)})
    assert record.kind == "vector"
    assert record.manifest.target == TARGET
    assert record.manifest.sites == ("resid_post.0", "resid_post.2")
    assert record.manifest.norms == {"resid_post.0": 2.0, "resid_post.2": 5.0}


def test_what_we_export_comes_back_as_the_same_artifact(upload, store):
    record = upload({"direction.2": np.ones(4, np.float32)})
    again = upload((record.path / "tensors.safetensors").read_bytes(), name="elsewhere", target=None)
    assert again.id == record.id == artifact_id(verify(record.path))
    assert store.get("elsewhere").id == record.id


def test_imported_vector_is_loadable(upload):
    record = upload({"direction.2": np.arange(4, dtype=np.float32)})
    _, vectors = load_vector(record.path)
    assert vectors[Site(2)].tolist() == [0, 1, 2, 3]


def test_json_lines_become_a_dataset(upload):
    lines = [{"prompt": "a", "completion": None}, {"messages": [{"role": "user", "content": "b"}]}, {"text": "c"}]
    record = upload("\n".join(map(json.dumps, lines)).encode())
    assert record.kind == "dataset"
    assert record.manifest.training["rows"] == 3


def test_plain_text_becomes_passages(upload):
    book = "\ufeffOne day,\r\nat noon.\r\n\r\n" + "é" * 995 + "\n\nThe end."
    record = upload(book.encode(), text=True)
    assert record.manifest.training["rows"] == 3
    texts = [row.text for row in dataset_rows(record.path)]
    assert texts == ["One day,\nat noon.", "é" * 995, "The end."]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b" \n\n", b"caf\xe9"])
def test_what_is_no_text_is_refused(upload, content, store):
    with pytest.raises(DataError, match=r"UTF-8|at least one row"):
        upload(content, text=True)
    assert store.list() == []


def test_bad_json_line_is_named(upload):
    with pytest.raises(DataError, match="line 2"):
        upload(b'{"text": "a"}\n{"txt": "b"}\n')


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({"direction.2": np.ones(5, np.float32)}, ArtifactMismatch),
        ({"direction.2": np.ones((2, 2), np.float32)}, DataError),
        ({"direction.2": np.ones(4, np.float64)}, DataError),
        ({"direction.2": np.array([1, 2, np.nan, 3], np.float32)}, DataError),
        ({"direction.2": np.ones(4, np.float32), "resid_post.2": np.ones(4, np.float32)}, DataError),
        ({"weight": np.ones(4, np.float32)}, DataError),
    ],
)
def test_tensors_that_are_no_vectors_of_the_model_are_refused(upload, tensors, error, store):
    with pytest.raises(error):
        upload(tensors)
    assert store.list() == []


def test_vector_needs_a_model(upload):
    with pytest.raises(ArtifactMismatch, match="which model"):
        upload({"direction.2": np.ones(4, np.float32)}, target=None)


def test_manifest_that_does_not_fit_its_tensors_is_refused(upload, tmp_path):
    record = upload({"direction.2": np.ones(4, np.float32)})
    header = record.manifest.model_copy(update={"files": {}}).model_dump_json()
    save_file({"resid_post.3": np.ones(4, np.float32)}, tmp_path / "bent", metadata={"interlock": header})
    with pytest.raises(ArtifactCorrupt):
        upload((tmp_path / "bent").read_bytes())


def test_damaged_safetensors_are_refused(upload, tmp_path):
    save_file({"direction.2": np.ones(4, np.float32)}, tmp_path / "good")
    content = (tmp_path / "good").read_bytes()
    for damaged in (content[:-1], content + b"x", content[:30], b"\xff" * 8 + content[8:], b""):
        with pytest.raises(DataError):
            upload(damaged)


def test_real_control_vectors_are_imported(shared_data, upload):
    target = ModelBinding(model="qwen", config_digest="1" * 64, width=1536)
    record = upload((shared_data / "vectors" / "happy_diffmean.gguf").read_bytes(), target=target)
    assert len(record.manifest.sites) == 28
    with pytest.raises(ArtifactMismatch, match="width 1536"):
        upload((shared_data / "vectors" / "happy_diffmean.gguf").read_bytes())


def test_mutated_safetensors_are_taken_whole_or_refused(upload, tmp_path, store):
    """Whatever bytes change, the answer is an artifact or a named refusal, never another exception."""
    save_file({"direction.2": np.ones(4, np.float32), "direction.3": np.ones(4, np.float32)}, tmp_path / "plain")
    ours = upload((tmp_path / "plain").read_bytes()).path / "tensors.safetensors"
    chance = random.Random(3)
    refused = taken = 0
    for content in ((tmp_path / "plain").read_bytes(), ours.read_bytes()):
        for _ in range(300):
            mutated = bytearray(content)
            for _ in range(chance.randint(1, 3)):
                mutated[chance.randrange(len(mutated))] = chance.choice((0, 34, 44, 57, 123, 125, 255))
            (tmp_path / "mutated").write_bytes(mutated)
            folder = store.new_staging()
            try:
                import_upload(tmp_path / "mutated", folder, name="thing", created_at=CREATED, target=TARGET)
                taken += 1
            except (DataError, ArtifactError):
                refused += 1
                assert not (folder / "manifest.json").exists()
    assert refused > 100
    assert taken > 0
