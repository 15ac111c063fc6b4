"""Every registered route: who is let in, and what another key's objects look like from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from server.api.auth import authenticate
from server.engine.request import GenerationRequest
from server.types import SamplingParams
from tests.server.api.conftest import CHAT, COMPLETION, bearer, ring

OPEN = {"/health/live", "/health/ready", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/static-offline-docs"}
EVERY = {"infer", "steer", "unswitch", "train", "admin", "metrics"}
OWNER = {"infer", "steer", "train"}


def dependencies(dependant: Any) -> Iterator[Any]:
    yield dependant
    for child in dependant.dependencies:
        yield from dependencies(child)


def guarded(app: FastAPI) -> dict[str, bool]:
    """Paths of all registered routes, described or not, each with whether it asks for a key *and* for a scope."""
    found: dict[str, bool] = {}
    for route in iter_route_contexts(app.routes):
        dependant = getattr(route._effective_route, "dependant", None)
        asks = [one for one in dependencies(dependant) if one.call is authenticate] if dependant is not None else []
        key = f"{sorted(route.methods or [])} {route.path}"
        found[key] = any(one.own_oauth_scopes for one in asks)
    return found


def test_every_registered_route_depends_on_a_key_and_a_scope(build: Callable[..., FastAPI]) -> None:
    found = guarded(build())
    unguarded = {key.partition("] ")[2] for key, asks in found.items() if not asks}
    assert unguarded == OPEN
    assert len(found) > 35


def test_the_walk_finds_an_unguarded_route(build: Callable[..., FastAPI]) -> None:
    app = FastAPI()
    app.add_api_route("/v1/open", lambda: None, include_in_schema=False)
    assert guarded(app)["['GET'] /v1/open"] is False


@dataclass(frozen=True)
class Case:
    """A route that names an object of Alice's. ``own`` is her status; ``missing`` that of everybody else."""

    method: str
    path: str
    own: int
    body: Any = None
    missing: int = 404


CASES = [
    Case("GET", "/v1/artifacts/{artifact}", 200),
    Case("GET", "/v1/artifacts/{artifact}/download", 200),
    Case("GET", "/v1/artifacts/{artifact}/lineage", 200),
    Case("PUT", "/v1/artifacts/{artifact}/names/{alias}", 200),
    Case("DELETE", "/v1/artifacts/{artifact}/names/{alias}", 204),
    Case("DELETE", "/v1/artifacts/{artifact}", 204),
    Case("PATCH", "/v1/generations/{generation_id}", 200, {"safety_switch": False}),
    Case("GET", "/v1/jobs/{job_id}", 200),
    Case("GET", "/v1/jobs/{job_id}/log", 200),
    Case("GET", "/v1/jobs/{job_id}/events", 200),
    Case("POST", "/v1/jobs/{job_id}/cancel", 200),
    Case("POST", "/v1/jobs/{job_id}/resume", 200),
    Case("GET", "/v1/profiles/{name}", 200),
    Case("PUT", "/v1/profiles/{name}", 200, {}, missing=409),
    Case("DELETE", "/v1/profiles/{name}", 204),
    Case("GET", "/v1/models/{model_id}", 200),
    Case("DELETE", "/v1/keys/{key_id}", 403, missing=403),
]
JOB = {"kind": "transfer_vector", "name": "v", "parameters": {"vector": "a", "mapper": "b"}}


@pytest.fixture
def client(connect):
    return connect(keys=ring(alice=OWNER, bob=OWNER, root=EVERY))


@pytest.fixture
def things(client, engine) -> dict[str, str]:
    """One of everything that has an owner, all of it Alice's."""
    alice = bearer("alice")
    upload = client.post("/v1/artifacts?name=data", content=b'{"text":"a"}\n', headers=alice)
    client.put("/v1/profiles/mine", json={}, headers=alice)
    engine.hold = True
    row = GenerationRequest("cmpl-0a", (1, 2), SamplingParams(max_tokens=5), owner="alice")
    engine.submit(row, lambda event: None)
    return {
        "artifact": upload.json()["id"],
        "alias": "data",
        "generation_id": "cmpl-0a",
        "job_id": client.post("/v1/jobs", json=JOB, headers=alice).json()["id"],
        "name": "mine",
        "model_id": "fake:mine",
        "key_id": "key_0",
    }


def send(client, case: Case, things: dict[str, str], by: str):
    return client.request(case.method, case.path.format(**things), json=case.body, headers=bearer(by))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method} {case.path}")
def test_nobody_reaches_anothers_object(client, things, case):
    for stranger in ("bob", "carol"):
        refused = send(client, case, things, stranger)
        assert refused.status_code == (case.missing if stranger == "bob" else 401)
        assert "alice" not in refused.text
    assert send(client, case, things, "alice").status_code == case.own


NOT_THERE = {
    "artifact": f"art_{0:024}",
    "generation_id": "cmpl-0b",
    "job_id": "job_9",
    "name": "nobodys",
    "model_id": "fake:nobodys",
}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.missing == 404], ids=lambda case: f"{case.method} {case.path}"
)
def test_anothers_object_looks_like_one_that_is_not_there(client, things, case):
    seen = []
    for ids in (things, things | NOT_THERE):
        answer = send(client, case, ids, "bob")
        (asked,) = [ids[name] for name in NOT_THERE if f"{{{name}}}" in case.path]
        body = answer.json()["error"] | {"request_id": None}
        body["message"] = body["message"].replace(asked, "ID")
        names = sorted(answer.headers.keys())
        seen.append((answer.status_code, body, names))
    assert seen[0] == seen[1]


def test_no_page_of_another_origin_reaches_a_route(client):
    """Browsers send an ``Origin`` with everything but simple reads; no answer allows a page to read it."""
    foreign = bearer("root") | {"Origin": "https://evil.example"}
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        url = path.format(**dict.fromkeys(NOT_THERE, "x"), key_id="x", alias="x")
        for method in {*methods, "options", "trace", "delete", "brew"}:
            answer = client.request(method.upper(), url, headers=foreign)
            assert not [name for name in answer.headers if name.startswith("access-control")], f"{method} {path}"
            if method not in ("get", "head", "options"):
                assert answer.status_code == 403, f"{method} {path}"
                assert answer.json()["error"]["code"] == "foreign_origin"


@pytest.mark.parametrize("case", CASES[:-1], ids=lambda case: f"{case.method} {case.path}")
def test_an_admin_reaches_everything(client, things, case):
    assert send(client, case, things, "root").status_code == case.own


def test_every_route_with_an_id_is_in_the_matrix(client):
    paths = client.get("/openapi.json").json()["paths"]
    named = {(method.upper(), path) for path, methods in paths.items() if "{" in path for method in methods}
    assert named == {(case.method, case.path) for case in CASES}


@pytest.mark.parametrize("path", ["/v1/artifacts", "/v1/generations", "/v1/jobs", "/v1/profiles"])
def test_no_list_shows_anothers_object(client, things, path):
    assert len(client.get(path, headers=bearer("alice")).json()["data"]) == 1
    assert client.get(path, headers=bearer("bob")).json()["data"] == []
    assert len(client.get(path, headers=bearer("root")).json()["data"]) == 1


def test_nothing_of_anothers_can_be_used_in_a_request(client, things):
    for body in (COMPLETION | {"model": "fake:mine"}, COMPLETION | {"steering": [{"vector": things["artifact"]}]}):
        assert client.post("/v1/completions", json=body, headers=bearer("bob")).status_code == 404
    chat = CHAT | {"model": "fake:mine"}
    assert client.post("/v1/chat/completions", json=chat, headers=bearer("bob")).status_code == 404
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [65]})):
        assert client.post(path, json=body | {"model": "fake:mine"}, headers=bearer("bob")).status_code == 404
    profile = {"steering": [{"vector": things["artifact"]}]}
    assert client.put("/v1/profiles/bobs", json=profile, headers=bearer("bob")).status_code == 404


HOSTS = (
    *("", "localhost", "127.0.0.1:8000", "evil.example", "evil.example/health/live", "evil.example?/health/live"),
    *("evil.example#", "[::1]", "[::1", "health", "x@y", "a" * 300),
)
SPELLINGS = (
    *("/{}", "//{}", "/{}/", "/./{}", "/{}%00", "/{};/health/live", "/{}?/health/live", "/{}#/health/live"),
    *("/health/live/../../{}", "/health/live/%2e%2e/%2e%2e/{}", "/openapi.json/../{}", "/docs/../{}"),
)


@pytest.mark.parametrize("path", ["v1/keys", "v1/policy", "v1/audit", "v1%2fkeys", "v1/%6beys", "V1/KEYS"])
def test_no_spelling_of_host_or_path_reaches_administration(client, path):
    for spelling in SPELLINGS:
        for host in HOSTS:
            refused = client.get(spelling.format(path), headers={"Host": host}, follow_redirects=False)
            assert refused.status_code in (401, 404), f"{spelling.format(path)} for {host}"
            assert "data" not in refused.text
            assert "location" not in refused.headers
