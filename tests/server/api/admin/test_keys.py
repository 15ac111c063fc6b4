from __future__ import annotations

import pytest

from server.policy.policy import Policy
from tests.server.api.conftest import COMPLETION, bearer, ring

EVERY = {"infer", "steer", "unswitch", "train", "admin", "metrics"}
BODY = {"name": "web", "scopes": ["infer"]}


@pytest.fixture
def clock() -> list[float]:
    return [1_700_000_000.0]


@pytest.fixture
def client(connect, clock):
    keys = ring(root=EVERY, deputy={"admin", "infer"}, user={"infer"})
    return connect(keys=keys, policy=Policy(default_switch="safe"), wall_clock=lambda: clock[0])


def issue(client, body: dict | None = None, by: str = "root", status: int = 201) -> dict:
    response = client.post("/v1/keys", json=BODY | (body or {}), headers=bearer(by))
    assert response.status_code == status, response.text
    return response.json() if status == 201 else response.json()["error"]


def test_a_key_is_shown_once_works_at_once_and_is_taken_back_at_once(client):
    made = issue(client, {"limits": {"max_strength": 2}})
    secret = made.pop("secret")
    assert client.post("/v1/completions", json=COMPLETION, headers=bearer(secret)).status_code == 200
    listed = client.get("/v1/keys", headers=bearer("root"))
    assert secret not in listed.text
    (only,) = listed.json()["data"]
    assert only == made | {"last_used_at": 1_700_000_000.0}
    assert client.delete(f"/v1/keys/{made['id']}", headers=bearer("root")).status_code == 204
    refused = client.post("/v1/completions", json=COMPLETION, headers=bearer(secret))
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert client.delete(f"/v1/keys/{made['id']}", headers=bearer("root")).status_code == 404


def test_a_key_expires(client, clock):
    secret = issue(client, {"expires_in_s": 60})["secret"]
    assert client.get("/v1/models", headers=bearer(secret)).status_code == 200
    clock[0] += 60
    refused = client.get("/v1/models", headers=bearer(secret))
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "expired_api_key")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "a/b"}, "name"),
        ({"name": ""}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes[0]"),
        ({"scopes": ["infer", "infer"]}, "scopes"),
        ({"expires_in_s": 0}, "expires_in_s"),
        ({"expires_in_s": 2**63}, "expires_in_s"),
        ({"expires_in_s": 1.5}, "expires_in_s"),
        ({"limits": {"strengths": {"safe": {}}}}, "limits.strengths.safe"),
        ({"secret": "mine"}, "secret"),
    ],
)
def test_a_wrong_field_is_named(client, body, param):
    assert issue(client, body, status=400)["param"] == param


def test_nobody_gives_more_than_they_have(client):
    assert issue(client, {"scopes": ["infer", "unswitch"]}, "deputy", 403)["code"] == "scope_not_held"
    assert issue(client, {}, "user", 403)["code"] == "not_permitted"
    secret = issue(client, {"scopes": ["admin", "infer"]}, "deputy")["secret"]
    assert issue(client, {"scopes": ["train"]}, secret, 403)["code"] == "scope_not_held"


def test_a_profile_that_is_not_there_is_named(client):
    assert issue(client, {"profile": "nothing"}, status=404)["param"] == "profile"


def test_an_open_server_issues_none(connect):
    response = connect().post("/v1/keys", json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "open_server")


def test_limits_of_a_key_hold(client):
    limits = {"max_strength": 2, "strengths": {"safe": {"min": 0.5}}}
    secret = issue(client, {"scopes": ["infer", "steer", "unswitch"], "limits": limits})["secret"]

    def refusal(body: dict) -> str | None:
        response = client.post("/v1/completions", json=COMPLETION | body, headers=bearer(secret))
        return response.json()["error"]["code"] if response.status_code == 403 else None

    assert refusal({"safety_switch": {"strength": 0.5}}) is None
    assert refusal({"safety_switch": {"strength": 0.4}}) == "strength_floor"
    assert refusal({"safety_switch": False}) == "strength_floor"
    assert refusal({"safety_switch": {"strength": 2.5}}) == "strength_ceiling"
    capabilities = client.get("/v1/capabilities", headers=bearer(secret)).json()
    assert capabilities["limits"]["max_strength"] == 2
    assert capabilities["scopes"] == ["infer", "steer", "unswitch"]
