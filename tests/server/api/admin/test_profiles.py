from __future__ import annotations

import base64
import struct

import pytest

from server.types import GateSpec
from tests.server.api.conftest import COMPLETION, bearer, ring
from tests.server.api.fakes import WIDTH, FakeCatalog, id_of

EVERY = {"infer", "steer", "unswitch", "train", "admin", "metrics"}
INLINE = {"data": base64.b64encode(struct.pack(f"<{WIDTH}f", *range(WIDTH))).decode(), "sites": [{"layer": 2}]}


@pytest.fixture
def catalog() -> FakeCatalog:
    return FakeCatalog()


@pytest.fixture
def client(connect, catalog):
    keys = ring(root=EVERY, alice={"infer", "steer", "admin"}, bob={"infer", "steer"}, user={"infer"})
    return connect(keys=keys, catalog=catalog)


def put(client, name: str = "calm", by: str = "root", status: int = 200, **body) -> dict:
    response = client.put(f"/v1/profiles/{name}", json=body, headers=bearer(by))
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def ask(client, by: str = "root", status: int = 200, **body) -> dict:
    response = client.post("/v1/completions", json=COMPLETION | body, headers=bearer(by))
    assert response.status_code == status, response.text
    return response.json()


CALM = {
    "safety_switch": {"name": "safe", "strength": 0.7, "apply": {"generation": "all"}},
    "steering": [{"vector": "joy", "strength": 2, "sites": [{"layer": 1}], "apply": {"prompt": {"window": [0, 2]}}}],
}


def test_a_profile_is_a_model_of_its_own(client, engine):
    written = put(client, shared=True, **CALM)
    assert (written["model"], written["owner"]) == ("fake:calm", "root")
    assert written["artifacts"] == {"safe": id_of("safe"), "joy": id_of("joy")}
    ids = [model["id"] for model in client.get("/v1/models", headers=bearer("user")).json()["data"]]
    assert ids == ["fake", "fake:calm"]
    assert client.get("/v1/models/fake:calm", headers=bearer("user")).json()["id"] == "fake:calm"
    answer = ask(client, "user", model="fake:calm")
    assert answer["model"] == "fake:calm"
    assert answer["interlock"]["profile"] == "calm"
    assert [(one["name"], one["strength"]) for one in answer["interlock"]["interventions"]] == [
        ("safe", 0.7),
        ("joy", 2.0),
    ]
    switch, joy = [resolved.spec for resolved in engine.requests[answer["id"]].interventions]
    assert (switch.source, joy.source, joy.apply.prompt.stop) == (id_of("safe"), id_of("joy"), 2)


def test_fields_of_the_request_come_on_top(client):
    put(client, shared=True, **CALM)

    def done(**body) -> list[tuple[str, float]]:
        answer = ask(client, model="fake:calm", **body)
        return [(one["name"], one["strength"]) for one in answer["interlock"]["interventions"]]

    joy = ("joy", 2.0)
    assert done(safety_switch=True) == [("safe", 0.7), joy]
    assert done(safety_switch={"strength": 0.9}) == [("safe", 0.9), joy]
    assert done(safety_switch="other") == [("other", 1.0), joy]
    assert done(safety_switch=False) == [joy]
    assert done(steering=[{"vector": "refusal"}]) == [("safe", 0.7), joy, ("refusal", 1.0)]
    assert done(steering=[]) == [("safe", 0.7), joy]


def test_a_profile_keeps_to_the_artifacts_it_was_written_with(client, catalog, engine):
    put(client, shared=True, safety_switch="safe")
    del catalog.known["safe"]  # the name moved on, and with it what "safe" means in a request without the profile
    ask(client, safety_switch="safe", status=404)
    catalog.resolve = lambda spec, old=catalog.resolve: (
        FakeCatalog().resolve(spec) if spec.source != "safe" else old(spec)
    )
    answer = ask(client, model="fake:calm")
    assert engine.requests[answer["id"]].interventions[0].spec.source == id_of("safe")
    assert answer["interlock"]["interventions"][0]["name"] == "safe"


def test_a_profile_is_bound_to_the_probes_of_its_gates(client, engine):
    gated = {"safety_switch": {"name": "safe", "gate": "harmful"}}
    written = put(client, shared=True, steering=[{"vector": "joy", "gate": {"probe": "spam", "hold": 4}}], **gated)
    assert written["artifacts"] == {name: id_of(name) for name in ("safe", "harmful", "joy", "spam")}
    assert written["safety_switch"]["gate"] == "harmful"
    for body in ({}, gated, {"safety_switch": {"gate": id_of("harmful")}}):
        answer = ask(client, model="fake:calm", **body)
        switch, joy = [resolved.spec for resolved in engine.requests[answer["id"]].interventions]
        assert (switch.gate, joy.gate) == (GateSpec(id_of("harmful")), GateSpec(id_of("spam"), hold=4))
    assert put(client, status=404, steering=[{"vector": "joy", "gate": "nothing"}])["param"] == "steering[0].gate"


def test_inline_vectors_and_nothing_at_all_can_be_profiles(client):
    assert put(client, "inline", steering=[{"vector": INLINE, "strength": 3}])["artifacts"] == {}
    assert ask(client, model="fake:inline")["interlock"]["interventions"][0]["strength"] == 3
    put(client, "plain")
    assert ask(client, model="fake:plain")["interlock"]["interventions"] == []


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"safety_switch": True}, 400, "safety_switch"),
        ({"safety_switch": {"strength": 0.5}}, 400, "safety_switch"),
        ({"safety_switch": "nothing"}, 404, "safety_switch"),
        ({"steering": [{"vector": "nothing"}]}, 404, "steering[0].vector"),
        ({"steering": [{"vector": "joy", "strength": 101}]}, 400, "steering[0].strength"),
        (
            {"steering": [{"vector": INLINE | {"data": INLINE["data"][:8]}}]},
            400,
            "steering[0].vector.data",
        ),
        ({"steering": [{"vector": "joy"}] * 9}, 400, "steering"),
        ({"temperature": 0}, 400, "temperature"),
        ({"shared": 1}, 400, "shared"),
    ],
)
def test_a_profile_is_checked_like_a_request(client, body, status, param):
    assert put(client, status=status, **body)["param"] == param
    assert client.get("/v1/profiles", headers=bearer("root")).json()["data"] == []


def test_who_sees_and_changes_what(client):
    put(client, "mine", by="bob")
    for by, seen in (("bob", True), ("user", False), ("root", True)):
        assert client.get("/v1/profiles/mine", headers=bearer(by)).status_code == (200 if seen else 404)
        ask(client, by, 200 if seen else 404, model="fake:mine")
        assert len(client.get("/v1/profiles", headers=bearer(by)).json()["data"]) == seen
    assert put(client, "x", by="bob", status=403, shared=True)["code"] == "not_permitted"
    assert put(client, "x", by="user", status=403)["code"] == "not_permitted"
    put(client, "calm", by="root", shared=True)
    assert put(client, "calm", by="bob", status=409)["param"] == "name"
    assert client.delete("/v1/profiles/calm", headers=bearer("bob")).status_code == 403
    assert client.delete("/v1/profiles/mine", headers=bearer("bob")).status_code == 204
    assert client.get("/v1/profiles/mine", headers=bearer("bob")).status_code == 404


def default(client, profile: str | None, version: int = 0) -> None:
    body = {"document": {"default_profiles": {"fake": profile}}, "version": version}
    assert client.put("/v1/policy", json=body, headers=bearer("root")).status_code == 200


def test_the_default_profile_is_what_a_silent_request_gets(client):
    put(client, shared=True, **CALM)
    default(client, "calm")
    answer = ask(client, "user")
    assert answer["model"] == "fake"
    assert answer["interlock"]["profile"] == "calm"
    assert [one["name"] for one in answer["interlock"]["interventions"]] == ["safe", "joy"]
    capabilities = client.get("/v1/capabilities", headers=bearer("user")).json()
    assert (capabilities["default_profile"], capabilities["default_switch"]) == ("calm", "safe")
    more = ask(client, "root", steering=[{"vector": "refusal"}])
    assert [one["name"] for one in more["interlock"]["interventions"]] == ["safe", "joy", "refusal"]


def test_a_default_vector_is_not_undone_by_naming_it_again(client, artifacts, monkeypatch):
    monkeypatch.setattr(artifacts, "get", lambda *args, **kwargs: None)
    put(client, shared=True, steering=[{"vector": "joy", "strength": 2}])
    default(client, "calm")
    for vector in ("joy", id_of("joy")):
        again = [{"vector": vector, "strength": -2}]
        assert ask(client, "bob", 403, steering=again)["error"]["code"] == "default_protected"
        ask(client, "root", steering=again)
        newest = client.get("/v1/audit?limit=1", headers=bearer("root")).json()["data"][0]
        assert newest["action"] == "default.lowered"
    ask(client, "bob", steering=[{"vector": "refusal", "strength": -2}])


def test_a_keys_profile_stands_in_place_of_the_models(client):
    put(client, "calm", shared=True, **CALM)
    put(client, "strict", safety_switch="other")
    default(client, "calm")
    body = {"name": "k", "scopes": ["infer"], "profile": "strict"}
    secret = client.post("/v1/keys", json=body, headers=bearer("root")).json()["secret"]
    assert [one["name"] for one in ask(client, secret)["interlock"]["interventions"]] == ["other"]
    for weaker in ({"safety_switch": False}, {"safety_switch": "safe"}, {"model": "fake:calm"}):
        ask(client, secret, 403, **weaker)


def test_a_default_is_not_deleted_and_takes_both_scopes_to_change(client):
    put(client, "calm", by="alice", shared=True, **CALM)
    default(client, "calm")
    assert put(client, "calm", by="alice", status=403)["code"] == "default_protected"
    assert client.delete("/v1/profiles/calm", headers=bearer("root")).status_code == 409
    put(client, "calm", by="root", shared=True, safety_switch="other")
    assert [one["name"] for one in ask(client, "user")["interlock"]["interventions"]] == ["other"]


@pytest.mark.parametrize("apply", [{"match": "x"}, {"prompt": {"positions": [0]}}, {"prompt": {"window": [1, None]}}])
def test_positions_that_some_prompts_lack_are_for_chosen_profiles_only(client, apply):
    put(client, "narrow", shared=True, steering=[{"vector": "joy", "apply": apply}])
    body = {"document": {"default_profiles": {"fake": "narrow"}}, "version": 0}
    refused = client.put("/v1/policy", json=body, headers=bearer("root"))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "default_profiles.fake")
    ask(client, "user", model="fake:narrow", prompt="xx")


def test_a_default_that_cannot_be_loaded_answers_nobody(client, catalog, engine):
    put(client, shared=True, safety_switch="safe")
    default(client, "calm")
    assert client.get("/health/ready").status_code == 200
    del catalog.known["safe"]
    for by, body in (("user", {}), ("user", {"safety_switch": True}), ("root", {"safety_switch": False})):
        refused = ask(client, by, 503, **body)["error"]
        assert refused["code"] == "default_unavailable"
    assert client.get("/health/ready").status_code == 503
    assert not engine.requests


def test_what_a_profile_is_bound_to_is_not_deleted(client, catalog):
    upload = client.post("/v1/artifacts?name=data", content=b'{"text":"a"}\n', headers=bearer("root")).json()
    catalog.resolve = lambda spec: type("R", (), {"digest": upload["id"], "spec": spec, "name": "data"})()
    put(client, steering=[{"vector": "data"}])
    refused = client.delete("/v1/artifacts/data", headers=bearer("root"))
    assert (refused.status_code, "calm" in refused.json()["error"]["message"]) == (409, True)
    assert client.delete("/v1/profiles/calm", headers=bearer("root")).status_code == 204
    assert client.delete("/v1/artifacts/data", headers=bearer("root")).status_code == 204
