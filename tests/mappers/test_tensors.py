from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mappers.artifact import MANIFEST_FILE, TENSOR_FILE, Manifest, ModelBinding, seal
from mappers.errors import ArtifactCorrupt, ArtifactMismatch
from mappers.modules import Mapper, MapperConfig, MapperKind, build_mapper
from mappers.sites import Site
from mappers.tensors import load_mapper, load_switch, load_vector, save_mapper, save_switch, save_vector

TARGET = ModelBinding(model="llama", config_digest="a" * 64, width=6)
SOURCE = ModelBinding(model="qwen", config_digest="b" * 64, width=4)


def manifest(kind: str, sites: tuple[int, ...] = (1,), **parts: Any) -> Manifest:
    content = {
        "kind": kind,
        "name": "one",
        "created_at": "2026-01-02T03:04:05+00:00",
        "target": TARGET,
        "sites": tuple(f"resid_post.{layer}" for layer in sites),
        "dtype": "float32",
    }
    return Manifest.model_validate(content | parts)


def equal(a: Mapper, b: Mapper) -> bool:
    return a.config == b.config and all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("kind", ["ridge", "affine", "procrustes", "low_rank", "autoencoder"])
@pytest.mark.parametrize("residual", [False, True])
def test_a_switch_comes_back_as_it_was(tmp_path: Path, kind: MapperKind, residual: bool) -> None:
    rank = 2 if kind == "low_rank" else None
    config = MapperConfig(kind=kind, d_source=6, d_target=6, residual=residual, rank=rank)
    mappers = {site: build_mapper(config) for site in (Site(0), Site(2))}
    saved = save_switch(tmp_path, mappers, manifest("switch", (0, 2), mapper=config))
    loaded_manifest, loaded = load_switch(tmp_path)
    assert loaded_manifest == saved
    assert list(loaded) == [Site(0), Site(2)]
    assert all(equal(loaded[site], mappers[site]) for site in mappers)
    assert not any(p.requires_grad for mapper in loaded.values() for p in mapper.parameters())


def test_a_mapper_between_models_comes_back(tmp_path: Path) -> None:
    config = MapperConfig(kind="autoencoder", d_source=4, d_target=6)
    mapper = build_mapper(config)
    described = manifest("mapper", (3,), source=SOURCE, source_sites=("resid_post.2",), mapper=config)
    save_mapper(tmp_path, mapper, described)
    loaded_manifest, loaded = load_mapper(tmp_path)
    assert (loaded_manifest.sites, loaded_manifest.source_sites) == (("resid_post.3",), ("resid_post.2",))
    assert equal(loaded, mapper)


def test_a_vector_comes_back_with_its_norms(tmp_path: Path) -> None:
    vectors = {Site(0): torch.arange(6.0), Site(1): torch.ones(6)}
    saved = save_vector(tmp_path, vectors, manifest("vector", (0, 1)))
    _, loaded = load_vector(tmp_path)
    assert all(torch.equal(loaded[site], vectors[site]) for site in vectors)
    assert saved.norms == {"resid_post.0": pytest.approx(55**0.5), "resid_post.1": pytest.approx(6**0.5)}


def test_equal_tensors_give_equal_files(tmp_path: Path) -> None:
    first = save_vector(tmp_path / "a", {Site(1): torch.ones(6)}, manifest("vector"))
    assert save_vector(tmp_path / "b", {Site(1): torch.ones(6)}, manifest("vector")) == first


@pytest.mark.parametrize(
    "vectors",
    [
        {Site(2): torch.ones(6)},
        {Site(1): torch.ones(5)},
        {Site(1): torch.full((6,), float("nan"))},
        {Site(1): torch.ones(6), Site(2): torch.ones(6)},
        {},
    ],
)
def test_tensors_that_contradict_the_manifest_are_not_saved(tmp_path: Path, vectors: dict[Site, Tensor]) -> None:
    with pytest.raises(ArtifactMismatch):
        save_vector(tmp_path / "v", vectors, manifest("vector"))
    assert not (tmp_path / "v").exists()


def test_an_artifact_of_another_kind_is_not_taken_for_it(tmp_path: Path) -> None:
    save_vector(tmp_path, {Site(1): torch.ones(6)}, manifest("vector"))
    with pytest.raises(ArtifactMismatch, match="is a vector, not a switch"):
        load_switch(tmp_path)
    with pytest.raises(ArtifactMismatch, match="is a vector, not a mapper"):
        load_mapper(tmp_path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"resid_post.1": torch.ones(6, dtype=torch.float64)},
        {"resid_post.1": torch.full((6,), float("inf"))},
        {"resid_post.1": torch.ones(7)},
        {"other": torch.ones(6)},
    ],
)
def test_well_sealed_but_wrong_tensors_are_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / TENSOR_FILE)
    seal(tmp_path, manifest("vector"))
    with pytest.raises(ArtifactCorrupt):
        load_vector(tmp_path)


def test_verification_can_be_left_to_the_registry(tmp_path: Path) -> None:
    save_vector(tmp_path, {Site(1): torch.ones(6)}, manifest("vector"))
    path = tmp_path / TENSOR_FILE
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x40")
    with pytest.raises(ArtifactCorrupt):
        load_vector(tmp_path)
    assert not torch.equal(load_vector(tmp_path, verify=False)[1][Site(1)], torch.ones(6))
    path.write_bytes(b"rubbish")
    with pytest.raises(ArtifactCorrupt, match="cannot be read"):
        load_vector(tmp_path, verify=False)


@pytest.mark.parametrize("verify", [True, False])
def test_a_damaged_artifact_is_read_as_it_was_or_refused(tmp_path: Path, verify: bool) -> None:
    """Bytes turned over anywhere in either file, or the end cut off: never another exception, never other values."""
    mapper = build_mapper(MapperConfig(kind="ridge", d_source=6, d_target=6))
    save_switch(tmp_path, {Site(1): mapper}, manifest("switch", mapper=mapper.config))
    chance, outcomes = random.Random(11), set()
    for file in (tmp_path / TENSOR_FILE, tmp_path / MANIFEST_FILE):
        content = file.read_bytes()
        for _ in range(120):
            damaged = bytearray(content[: chance.choice((len(content), chance.randrange(len(content))))])
            for place in chance.choices(range(len(damaged)), k=min(2, len(damaged))):
                damaged[place] ^= chance.choice((1, 2, 128, 255))
            file.write_bytes(damaged)
            try:
                loaded = load_switch(tmp_path, verify=verify)[1]
            except (ArtifactCorrupt, ArtifactMismatch):
                outcomes.add("refused")
                continue
            outcomes.add("read")
            assert not verify or equal(loaded[Site(1)], mapper)
        file.write_bytes(content)
    assert "refused" in outcomes
