"""Strengths in norms of the activations: made plain before policy, receipts and the engine see them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from safetensors.numpy import save_file

from mappers.artifact import TENSOR_FILE, seal
from mappers.manifest import Manifest, ModelBinding
from server.policy.policy import Policy
from tests.server.api.conftest import COMPLETION, bearer, ring
from tests.server.api.fakes import WIDTH, FakeResolved

NORM, SITE_NORM = 2.0, 10.0


@dataclass(frozen=True, eq=False)
class Stored(FakeResolved):
    """A vector of the store, known by its id."""

    id: str

    @property
    def digest(self) -> str:
        return self.id


class StoredCatalog:
    """Gives what the artifact store has."""

    def __init__(self, artifacts) -> None:
        self._artifacts = artifacts

    def resolve(self, spec) -> Stored:
        record = self._artifacts.get(spec.source, param=f"{spec.param}.vector")
        return Stored(spec, record.name, record.id)


@pytest.fixture
def client(connect, artifacts):
    return connect(catalog=StoredCatalog(artifacts))


@pytest.fixture
def vector(artifacts):
    """``vector(name, ...)`` stores a vector of norm 2 at each layer; the activations there have norm 10."""

    def make(name: str = "joy", layers: tuple[int, ...] = (1,), owner: str | None = None, site_norm: float = SITE_NORM):
        folder = artifacts.new_staging()
        sites = [f"resid_post.{layer}" for layer in layers]
        save_file({site: np.full(WIDTH, NORM / WIDTH**0.5, dtype=np.float32) for site in sites}, folder / TENSOR_FILE)
        manifest = Manifest(
            kind="vector",
            name=name,
            created_at="2026-01-02T03:04:05+00:00",
            target=ModelBinding(model="fake", config_digest="1" * 64, width=WIDTH),
            sites=tuple(sites),
            dtype="float32",
            norms=dict.fromkeys(sites, NORM),
            site_norms=dict.fromkeys(sites, site_norm) if site_norm else {},
        )
        seal(folder, manifest)
        return artifacts.register(folder, name=name, owner=owner)

    return make


def post(client, *items: dict, headers: dict | None = None):
    return client.post("/v1/completions", json=COMPLETION | {"steering": list(items)}, headers=headers)


def planned(engine, response) -> list:
    assert response.status_code == 200, response.text
    return [resolved.spec for resolved in engine.requests[response.json()["id"]].interventions]


def in_norms(strength: float = 0.5, **fields) -> dict:
    return {"vector": "joy", "strength": strength, "unit": "norm", **fields}


def test_a_strength_in_norms_is_that_share_of_the_activations_norm(client, engine, vector):
    record = vector()
    (spec,) = planned(engine, post(client, in_norms(-0.5)))
    assert spec.strength == pytest.approx(-0.5 * SITE_NORM / NORM)
    assert spec.source == record.id
    plain, norms = planned(engine, post(client, {"vector": "joy", "strength": 0.5, "unit": "vector"}, in_norms()))
    assert (plain.strength, norms.strength) == (0.5, 2.5)


def test_one_site_of_several_can_be_named(client, engine, vector):
    vector(layers=(1, 2))
    (spec,) = planned(engine, post(client, in_norms(sites=[{"layer": 2}])))
    assert (spec.strength, [site.layer for site in spec.sites]) == (2.5, [2])
    error = post(client, in_norms()).json()["error"]
    assert (error["param"], "send an item for each" in error["message"]) == ("steering[0].sites", True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"sites": [{"layer": 2}]}, "steering[0].unit"),
        ({"operation": "ablate"}, "steering[0].unit"),
        ({"operation": "clamp", "min": 0.0}, "steering[0].unit"),
        ({"vector": {"data": "AAAA", "sites": [{"layer": 1}]}}, "steering[0].unit"),
        ({"vector": "nothing"}, "steering[0].vector"),
        ({"unit": "rms"}, "steering[0].unit"),
        ({"strength": 100.0}, "steering[0].strength"),
    ],
)
def test_where_the_unit_means_nothing_it_is_refused(client, vector, fields, param):
    vector()
    response = post(client, in_norms() | fields)
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"] == param


def test_a_manifest_without_the_norm_is_refused(client, vector):
    vector(site_norm=0.0)
    error = post(client, in_norms()).json()["error"]
    assert (error["param"], "leave 'unit' out" in error["message"]) == ("steering[0].unit", True)


def test_bounds_are_for_the_plain_strength(connect, artifacts, vector):
    vector()
    client = connect(policy=Policy(max_strength=2.0), catalog=StoredCatalog(artifacts))
    assert post(client, in_norms(0.4)).status_code == 200
    error = post(client, in_norms(0.5)).json()["error"]
    assert (error["param"], "2.5" in error["message"]) == ("steering[0].strength", True)


def test_another_owners_vector_stays_unseen(connect, artifacts, vector):
    vector(owner="bob")
    client = connect(
        catalog=StoredCatalog(artifacts), keys=ring(alice={"infer", "steer"}, bob={"infer", "steer"}, carol={"infer"})
    )
    assert post(client, in_norms(), headers=bearer("bob")).status_code == 200
    assert post(client, in_norms(), headers=bearer("alice")).status_code == 404
    assert post(client, in_norms(), headers=bearer("carol")).status_code == 403


def test_a_profile_keeps_the_unit_and_the_vector_it_was_written_with(client, engine, vector):
    record = vector()
    assert client.put("/v1/profiles/glad", json={"steering": [in_norms()]}).status_code == 200
    vector(name="other", site_norm=3.0)
    vector(site_norm=4.0)
    (spec,) = planned(engine, client.post("/v1/completions", json=COMPLETION | {"model": "fake:glad"}))
    assert (spec.strength, spec.source) == (2.5, record.id)
    assert client.get("/v1/profiles/glad").json()["steering"][0]["unit"] == "norm"
