"""``collect_activations`` on tiny random models: shards are whole, and outlive the attempts that wrote them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mappers.activations.shards import read_activations
from mappers.artifact import verify
from mappers.errors import ArtifactMismatch, DataError
from mappers.loading import load_model
from server.jobs.channel import StopRequested
from server.jobs.folder import JobFolder
from tests.server.jobs.handlers.test_handlers import ANSWERED, PROMPTS, SetAfter

COLLECT: dict[str, Any] = {"dataset": "d", "sites": [{"layer": 2}, {"layer": 0}], "batch_size": 2}


def test_activations_are_staged_in_shards(run, dataset, tiny_models):
    data = {"d": dataset("d", PROMPTS + ANSWERED)}
    mask = {"special_tokens": True, "massive": 50.0}
    manifest, folder = run("collect_activations", "acts", data, **COLLECT, model="small", mask=mask, max_length=40)
    assert (manifest.kind, manifest.dtype, manifest.sites) == (
        "activations",
        "float16",
        ("resid_post.0", "resid_post.2"),
    )
    assert manifest.target is not None
    assert (manifest.target.model, manifest.target.width) == ("small", 16)
    assert [parent.role for parent in manifest.parents] == ["dataset"]
    stored = list(read_activations(folder))
    special = set(load_model(str(tiny_models.small)).tokenizer.all_special_ids)
    tokens = torch.cat([batch.token_ids_N for batch in stored]).tolist()
    assert len(tokens) == manifest.training["tokens"] > 50
    assert not special & set(tokens)
    assert manifest.training["masked"]["special_tokens"] == 3 * 4 + 3 * 6
    assert manifest.training["texts"] == 10
    assert set(torch.cat([batch.text_index_N for batch in stored]).tolist()) == set(range(10))


def test_a_collection_that_was_stopped_goes_on(run, dataset, tmp_path):
    data = {"d": dataset("d", PROMPTS + ANSWERED)}
    parameters = COLLECT | {"dtype": "float32"}
    whole, folder = run("collect_activations", "acts", data, **parameters)
    assert JobFolder(tmp_path / "jobs" / "job_1").shards.exists()
    with pytest.raises(StopRequested):
        run("collect_activations", "acts", data, **parameters, job_id="job_2", stop=SetAfter(4))
    again, other = run("collect_activations", "acts", data, **parameters, job_id="job_2", attempt=2)
    assert again.files == whole.files
    assert {p.name: p.read_bytes() for p in other.glob("*.safetensors")} == {
        p.name: p.read_bytes() for p in folder.glob("*.safetensors")
    }
    JobFolder(tmp_path / "jobs" / "job_2").drop_checkpoints()
    assert not JobFolder(tmp_path / "jobs" / "job_2").shards.exists()
    assert verify(other) == again


def test_what_cannot_be_collected_says_why(run, dataset):
    data = {"d": dataset("d", ANSWERED)}
    with pytest.raises(DataError, match="max_length"):
        run("collect_activations", "acts", data, **COLLECT, max_length=3)
    with pytest.raises(ArtifactMismatch, match="layer 9"):
        run("collect_activations", "acts", data, **COLLECT | {"sites": [{"layer": 9}]}, model="small", attempt=2)
