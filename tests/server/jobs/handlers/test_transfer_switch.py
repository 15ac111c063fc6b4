"""A switch of a reference model becomes one of the served model, and is what the composition says."""

from __future__ import annotations

import json

import pytest
import torch

from mappers.errors import ArtifactMismatch
from mappers.loading import load_model
from mappers.manifest import Manifest, ModelBinding
from mappers.mapper_config import MapperConfig
from mappers.modules import build_mapper
from mappers.sites import Site
from mappers.tensors import load_switch, save_switch
from server.jobs.context import binding

TEXTS = tuple(json.dumps({"prompt": f"what is the capital of {word}"}).encode() for word in ("averon", "a", "fox lamp"))


@pytest.fixture
def switch(artifacts, tiny_models):
    """A switch of ``small`` at layers 0 and 1, with drawn weights."""

    def make(digest: str | None = None):
        bound = binding("small", load_model(str(tiny_models.small)))
        if digest is not None:
            bound = ModelBinding(model="small", config_digest=digest * 64, width=bound.width)
        config = MapperConfig(kind="autoencoder", d_source=16, d_target=16, residual=True, hidden=6)
        mappers = {Site(seed): build_mapper(config, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)}
        for mapper in mappers.values():
            with torch.no_grad():
                mapper.decoder_weight.normal_(generator=torch.Generator().manual_seed(9))
        folder = artifacts.new_staging()
        manifest = Manifest(
            kind="switch", name="s", created_at="2026-01-02T03:04:05+00:00", target=bound,
            sites=("resid_post.0", "resid_post.1"), mapper=config, dtype="float32",
        )  # fmt: skip
        save_switch(folder, mappers, manifest)
        return artifacts.register(folder, name="s", owner=None)

    return make


PARAMETERS = {
    "switch": "s",
    "dataset": "d",
    "sites": [{"source": {"layer": 1}, "target": {"layer": 2}}, {"source": {"layer": 0}, "target": {"layer": 0}}],
}


def test_every_site_is_carried_and_serves(run, dataset, switch):
    data = {"s": switch(), "d": dataset("d", TEXTS * 3)}
    check = {"dataset": "d", "marker": "e", "max_new_tokens": 4, "strengths": [1.0, 2.0]}
    manifest, folder = run("transfer_switch", "t", data, **PARAMETERS, validation_fraction=0.3, check=check)
    _, mappers = load_switch(folder)
    assert manifest.sites == ("resid_post.0", "resid_post.2")
    assert manifest.source_sites == ("resid_post.0", "resid_post.1")
    assert (manifest.mapper.kind, manifest.mapper.residual, manifest.mapper.hidden) == ("autoencoder", True, 6)
    assert (manifest.target.model, manifest.source.model) == ("tuned", "small")
    assert [(parent.role, parent.name) for parent in manifest.parents] == [("switch", "s"), ("dataset", "d")]
    fvu = {f"fvu_{way}.resid_post.{layer}" for way in ("into", "back") for layer in (0, 2)}
    assert set(manifest.effect) == {*fvu, "rate_off", "rate_on@1", "rate_on@2"}
    assert all(0 <= manifest.effect[f"fvu_{way}.resid_post.0"] < 1.5 for way in ("into", "back"))
    h_ND = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    for mapper in mappers.values():
        assert not torch.allclose(mapper(h_ND), h_ND, atol=1e-3)


def test_a_switch_of_a_model_that_was_replaced_is_refused(run, dataset, switch):
    with pytest.raises(ArtifactMismatch, match="not the model"):
        run("transfer_switch", "t", {"s": switch("7"), "d": dataset("d", TEXTS)}, **PARAMETERS)
