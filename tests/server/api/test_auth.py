from __future__ import annotations

import pytest

from server.engine.request import GenerationRequest
from server.types import SamplingParams
from tests.server.api.conftest import CHAT, COMPLETION, bearer, ring

PUBLIC = {("GET", "/health/live"), ("GET", "/health/ready")}
FILLED = dict.fromkeys(("generation_id", "artifact", "alias", "job_id", "model_id", "name", "key_id"), "x")
SCOPES = ("infer", "steer", "unswitch", "train", "admin", "metrics")


def routes(client) -> list[tuple[str, str]]:
    paths = client.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def test_every_route_but_the_probes_asks_for_a_key(connect):
    client = connect(keys=ring(alice=set(SCOPES)))
    asked = routes(client)
    assert len(asked) > 20
    for method, path in asked:
        for headers in ({}, bearer("mallory"), {"Authorization": "Basic YWxpY2U6"}, {"Authorization": "Bearer "}):
            response = client.request(method, path.format(**FILLED), headers=headers, json={})
            if (method, path) in PUBLIC:
                assert response.status_code == 200
            else:
                assert response.status_code == 401, f"{method} {path}"
                assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("body", [b"", b"{", b"x" * 3_000_000])
def test_no_body_is_read_without_a_key(connect, body):
    client = connect(keys=ring(alice=set(SCOPES)))
    assert client.post("/v1/completions", content=body).status_code == 401
    assert client.post("/v1/jobs", content=body, headers=bearer("mallory")).status_code == 401
    assert client.post("/v1/completions", content=body, headers=bearer("alice")).status_code == 400


def test_every_route_asks_for_a_scope(connect):
    client = connect(keys=ring(nobody=set()))
    for method, path in routes(client):
        if (method, path) not in PUBLIC:
            response = client.request(method, path.format(**FILLED), headers=bearer("nobody"), json={})
            assert response.status_code == 403, f"{method} {path}"
            assert "scope" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("scopes", "method", "path", "body", "status"),
    [
        ({"infer"}, "POST", "/v1/chat/completions", CHAT, 200),
        ({"train"}, "POST", "/v1/chat/completions", CHAT, 403),
        ({"infer"}, "GET", "/v1/artifacts", None, 200),
        ({"infer"}, "POST", "/v1/artifacts?name=x", None, 403),
        ({"infer"}, "DELETE", "/v1/artifacts/x", None, 403),
        ({"infer", "train"}, "DELETE", "/v1/artifacts/x", None, 404),
        ({"infer"}, "GET", "/v1/jobs", None, 403),
        ({"train"}, "GET", "/v1/jobs", None, 200),
        ({"infer"}, "GET", "/metrics", None, 403),
        ({"metrics"}, "GET", "/metrics", None, 200),
        ({"infer"}, "POST", "/v1/completions", COMPLETION | {"steering": [{"vector": "joy"}]}, 403),
        ({"infer"}, "POST", "/v1/completions", COMPLETION | {"steering": []}, 200),
    ],
)
def test_scopes(connect, scopes, method, path, body, status):
    client = connect(keys=ring(alice=scopes))
    assert client.request(method, path, headers=bearer("alice"), json=body).status_code == status


def test_a_server_without_keys_lets_everybody_in(client):
    assert client.get("/v1/models", headers=bearer("anything")).status_code == 200


def test_keys_see_their_own_generations_only(connect, engine):
    engine.hold = True
    client = connect(keys=ring(alice={"infer"}, bob={"infer"}, root={"infer", "admin"}))
    stream_id = start(client, engine, "alice")
    for owner, seen in (("alice", 1), ("bob", 0), ("root", 1)):
        assert len(client.get("/v1/generations", headers=bearer(owner)).json()["data"]) == seen
        patched = client.patch(f"/v1/generations/{stream_id}", json={"safety_switch": False}, headers=bearer(owner))
        assert patched.status_code == (200 if seen else 404)


def start(client, engine, owner: str) -> str:
    """A row of ``owner`` that runs until the test ends."""
    engine.submit(GenerationRequest("cmpl-0a", (1, 2), SamplingParams(max_tokens=5), owner=owner), lambda event: None)
    return "cmpl-0a"


def test_keys_see_their_own_artifacts_only(connect):
    scopes = {"infer", "train", "steer"}
    client = connect(keys=ring(alice=scopes, bob=scopes, root=scopes | {"admin"}))
    upload = client.post("/v1/artifacts?name=joy", content=b'{"text":"a"}\n', headers=bearer("alice"))
    assert upload.status_code == 201
    for owner, seen in (("alice", True), ("bob", False), ("root", True)):
        for artifact in ("joy", upload.json()["id"]):
            for path in (f"/v1/artifacts/{artifact}", f"/v1/artifacts/{artifact}/download"):
                assert client.get(path, headers=bearer(owner)).status_code == (200 if seen else 404)
        assert len(client.get("/v1/artifacts", headers=bearer(owner)).json()["data"]) == seen
        steered = client.post(
            "/v1/completions", json=COMPLETION | {"steering": [{"vector": "joy"}]}, headers=bearer(owner)
        )
        assert steered.status_code == (200 if seen else 404)
    assert client.delete("/v1/artifacts/joy", headers=bearer("bob")).status_code == 404
    taken = client.post("/v1/artifacts?name=joy", content=b'{"text":"b"}\n', headers=bearer("bob"))
    assert taken.status_code == 409
    assert client.delete("/v1/artifacts/joy", headers=bearer("alice")).status_code == 204


def test_keys_see_their_own_jobs_only(connect):
    client = connect(keys=ring(alice={"train"}, bob={"train"}, root={"train", "admin"}))
    job = {"kind": "transfer_vector", "name": "v", "parameters": {"vector": "a", "mapper": "b"}}
    made = client.post("/v1/jobs", json=job, headers=bearer("alice")).json()["id"]
    for owner, seen in (("bob", False), ("alice", True), ("root", True)):
        assert len(client.get("/v1/jobs", headers=bearer(owner)).json()["data"]) == seen
        for method, path in (
            ("GET", ""),
            ("GET", "/log"),
            ("GET", "/events"),
            ("POST", "/cancel"),
            ("POST", "/resume"),
        ):
            response = client.request(method, f"/v1/jobs/{made}{path}", headers=bearer(owner))
            assert response.status_code == (200 if seen else 404), f"{owner} {path}"


HOSTILE_HOSTS = (
    *("", "localhost", "127.0.0.1:8000", "evil.example", "evil.example/health/live", "evil.example?/health/live"),
    *("evil.example#", "[::1]", "[::1", "health", "x@y", "a" * 300),
)
HOSTILE_PATHS = (
    *("//v1/models", "/v1/models/", "/v1//models", "/V1/MODELS", "/%76%31/models", "/v1/%6dodels", "/v1%2fmodels"),
    *(
        "/health/live/../../v1/models",
        "/health/live/%2e%2e/%2e%2e/v1/models",
        "/v1/models;/health/live",
        "/v1/models%00",
    ),
    *("/v1/models?/health/live", "/v1/models#/health/live", "/metrics/", "/./v1/models", "/openapi.json/../v1/models"),
)


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_no_spelling_of_host_or_path_lets_anybody_in(connect, path):
    client = connect(keys=ring(alice=set(SCOPES)))
    for host in HOSTILE_HOSTS:
        response = client.get(path, headers={"Host": host}, follow_redirects=False)
        assert response.status_code in (401, 404), f"{path} for {host}"
        assert "fake" not in response.text
        assert "location" not in response.headers
