from __future__ import annotations

import pytest

from tests.server.api.conftest import COMPLETION, bearer, ring
from tests.server.api.fakes import id_of

EVERY = {"infer", "steer", "unswitch", "train", "admin", "metrics"}


@pytest.fixture
def client(connect):
    return connect(keys=ring(root=EVERY, deputy={"admin", "steer", "infer"}, user={"infer", "steer"}))


def put(client, document: dict, version: int | None = 0, by: str = "root", headers: dict | None = None, **more):
    body = {"document": document, "version": version} | more
    return client.put("/v1/policy", json=body, headers=bearer(by) | (headers or {}))


def test_a_policy_is_read_changed_and_read_again(client):
    before = client.get("/v1/policy", headers=bearer("root"))
    assert (before.json()["version"], before.headers["etag"]) == (0, '"0"')
    changed = put(client, before.json()["document"] | {"inline_vectors": False})
    assert (changed.status_code, changed.headers["etag"]) == (200, '"1"')
    assert changed.json() == {
        "object": "policy",
        "version": 1,
        "created_at": 1_700_000_000.5,
        "created_by": "root",
        "document": before.json()["document"] | {"inline_vectors": False},
    }
    assert client.get("/v1/policy", headers=bearer("root")).json() == changed.json()
    assert client.get("/v1/policy?version=0", headers=bearer("root")).json() == before.json()
    assert client.get("/v1/policy?version=9", headers=bearer("root")).status_code == 404
    answer = client.post("/v1/completions", json=COMPLETION, headers=bearer("user")).json()
    assert answer["interlock"]["policy"] == "v1"


@pytest.mark.parametrize(
    ("version", "headers", "status", "param"),
    [
        (0, {}, 200, None),
        (None, {"If-Match": '"0"'}, 200, None),
        (None, {"If-Match": "0"}, 200, None),
        (None, {"If-Match": 'W/"0"'}, 200, None),
        (0, {"If-Match": '"0"'}, 200, None),
        (None, {}, 400, "version"),
        (1, {}, 409, "version"),
        (None, {"If-Match": '"1"'}, 409, "version"),
        (1, {"If-Match": '"0"'}, 400, "version"),
        (None, {"If-Match": "*"}, 400, "If-Match"),
        (None, {"If-Match": '"-1"'}, 400, "If-Match"),
        (None, {"If-Match": "9" * 20}, 400, "If-Match"),
        (-1, {}, 400, "version"),
        (2**63, {}, 400, "version"),
    ],
)
def test_compare_and_set(client, version, headers, status, param):
    response = put(client, {}, version, headers=headers)
    assert response.status_code == status, response.text
    assert param is None or response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({"rules": []}, "document.rules"),
        ({"vectors": {"allowed": ["../x"]}}, "document.vectors.allowed[0]"),
        ({"limits": {"strengths": {"safe": {"min": 2, "max": 1}}}}, "document.limits.strengths.safe"),
        ({"limits": {"max_strength": -1}}, "document.limits.max_strength"),
    ],
)
def test_it_is_checked_as_a_whole(client, document, param):
    response = put(client, document)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert client.get("/v1/policy", headers=bearer("root")).json()["version"] == 0


def test_who_may(client):
    assert put(client, {}, by="user").status_code == 403
    assert client.get("/v1/policy", headers=bearer("user")).status_code == 403
    refused = put(client, {}, by="deputy")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "default_protected")


def steer(client, *items: dict, by: str = "user"):
    return client.post("/v1/completions", json=COMPLETION | {"steering": list(items)}, headers=bearer(by))


@pytest.mark.parametrize(
    ("document", "item", "code", "param"),
    [
        ({"vectors": {"allowed": ["refusal"]}}, {"vector": "joy"}, "not_allowed", "steering[0].vector"),
        ({"vectors": {"denied": ["joy"]}}, {"vector": "joy"}, "denied", "steering[0].vector"),
        (
            {"limits": {"strengths": {"joy": {"max": 0.5}}}},
            {"vector": "joy"},
            "strength_ceiling",
            "steering[0].strength",
        ),
        ({"limits": {"strengths": {"joy": {"min": 2}}}}, {"vector": "joy"}, "strength_floor", "steering[0].strength"),
    ],
)
def test_rules_are_named_and_hold_for_everybody_under_every_name(
    client, artifacts, engine, monkeypatch, document, item, code, param
):
    monkeypatch.setattr(artifacts, "names_of", lambda identity: (frozenset({"joy"}), frozenset()))
    assert steer(client, item, by="root").status_code == 200
    assert put(client, document).status_code == 200
    for vector in ("joy", id_of("joy")):
        for by in ("root", "deputy"):
            refused = steer(client, item | {"vector": vector}, by=by)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["param"]) == (403, code, param)
    assert len(engine.requests) == 1


def test_a_default_profile_has_to_be_there(client):
    refused = put(client, {"default_profiles": {"fake": "nothing"}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "default_profiles.fake")


def test_a_served_model_that_the_policy_forgot_answers_nobody(client, engine):
    assert put(client, {"default_profiles": {"another": None}}).status_code == 200
    refused = client.post("/v1/completions", json=COMPLETION, headers=bearer("root"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "default_unavailable")
    assert client.get("/health/ready").status_code == 503
    assert not engine.requests
    assert put(client, {"default_profiles": {"another": None, "fake": None}}, 1).status_code == 200
    assert client.get("/health/ready").status_code == 200
