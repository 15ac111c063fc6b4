"""The HTTP layer over a real engine and a real socket: what the fakes cannot show."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch
from openai import OpenAI
from prometheus_client import CollectorRegistry
from safetensors.torch import save

from mappers.artifact import Manifest
from mappers.manifest import ModelBinding
from mappers.sites import Site
from mappers.tensors import save_vector
from server.api.services import Services
from server.engine.loader import EngineOptions, build_engine
from server.interventions.catalog import Catalog
from server.metrics import Metrics
from server.policy.audit import AuditLog
from server.policy.key_store import KeyStore
from server.policy.keys import KeyRing
from server.policy.policies import PolicyStore
from server.policy.policy import Policy
from server.policy.profiles import ProfileStore
from server.policy.receipts import ReceiptSigner
from server.registry.artifacts import ArtifactStore
from server.registry.database import Database
from tests.server.api.fakes import FakeJobs
from tests.server.engine.conftest import WIDTH, tiny_model
from tests.server.listening import listening, shared_client

LONG = 150


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("data")
    shutil.copyfile(empty_database, folder / "test.sqlite3")
    database = Database(f"sqlite:///{folder / 'test.sqlite3'}")
    audit = AuditLog(database, clock=time.time)
    artifacts = ArtifactStore(folder / "artifacts", database, clock=time.time)
    artifacts.reconcile()
    engine, codec = build_engine(tiny_model("llama"), EngineOptions(max_batch=4, max_waiting=64, prefill_tokens=64))
    engine.start()
    yield Services(
        engine=engine,
        codec=codec,
        catalog=Catalog(artifacts.get, engine.info, "cpu", 100.0),
        artifacts=artifacts,
        jobs=FakeJobs(),
        policies=PolicyStore(database, audit, Policy(), model="llama", clock=time.time),
        profiles=ProfileStore(database, audit, clock=time.time),
        keys=KeyStore(database, audit, KeyRing.first(None), clock=time.time),
        audit=audit,
        signer=ReceiptSigner(b"k" * 32),
        metrics=Metrics(CollectorRegistry(), "llama"),
    )
    engine.stop()
    database.close()


@pytest.fixture(scope="module")
def url(services: Services) -> Iterator[str]:
    with listening(services) as url:
        yield url


@pytest.fixture(scope="module")
def web(url: str) -> Iterator[httpx.Client]:
    with shared_client(url) as client:
        yield client


def body(**fields) -> dict:
    return {"model": "llama", "prompt": "Hello", "max_tokens": 8, "temperature": 0, "ignore_eos": True} | fields


def complete(web: httpx.Client, **fields) -> dict:
    response = web.post("/v1/completions", json=body(**fields))
    assert response.status_code == 200, response.text
    return response.json()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 20 seconds"
        time.sleep(0.02)


def inline(layer: int, scale: float = 1.0) -> dict:
    v_D = scale * torch.arange(1, WIDTH + 1, dtype=torch.float32)
    return {"data": base64.b64encode(v_D.numpy().tobytes()).decode(), "sites": [{"layer": layer}]}


def test_openais_client_over_a_socket(url):
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        whole = client.completions.create(model="llama", prompt="Hello", max_tokens=8, temperature=0, logprobs=3)
        assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens
        logprobs = whole.choices[0].logprobs
        assert all(token in top for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True))
        stream = client.completions.create(model="llama", prompt="Hello", max_tokens=8, temperature=0, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_seeds_make_choices_repeatable_and_different(web):
    fields = {"temperature": 1.5, "seed": 7, "n": 3, "max_tokens": 12}
    first, second = (complete(web, **fields)["choices"] for _ in range(2))
    assert first == second
    assert len({choice["text"] for choice in first}) == 3
    assert complete(web, **fields | {"seed": 8, "n": 1})["choices"][0]["text"] == first[1]["text"]


def test_the_prompt_is_scored_with_echo(web):
    choice = complete(web, echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert choice["text"] == "Hello"
    assert choice["logprobs"]["tokens"] == list("Hello")
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert all(value < 0 for value in choice["logprobs"]["token_logprobs"][1:])


def test_steering_acts_where_it_was_asked_to_and_says_so(web):
    plain = complete(web)
    steered = complete(web, steering=[{"vector": inline(1), "strength": 2, "apply": {"match": "ell"}}])
    (receipt,) = steered["interlock"]["interventions"]
    assert steered["choices"][0]["text"] != plain["choices"][0]["text"]
    assert (receipt["prompt_tokens"], receipt["generated_tokens"], receipt["sites"]) == (3, 0, ["resid_post.1"])
    assert receipt["mean_relative_change"] > 0
    zero = complete(web, steering=[{"vector": inline(1), "strength": 0}])
    assert zero["choices"] == plain["choices"]


@pytest.mark.parametrize(
    ("item", "code"),
    [
        ({"vector": {"data": base64.b64encode(bytes(8)).decode(), "sites": [{"layer": 1}]}}, "wrong_width"),
        ({"vector": inline(3)}, None),
        ({"vector": inline(1, float("nan"))}, None),
        ({"vector": "nothing"}, "not_found"),
        ({"vector": "foreign"}, "wrong_model"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(web, services, tmp_path, item, code):
    if item["vector"] == "foreign":
        folder = services.artifacts.new_staging()
        binding = ModelBinding(model="other", config_digest="0" * 64, width=WIDTH)
        manifest = Manifest(
            kind="vector",
            name="foreign",
            created_at="2026-01-01T00:00:00+00:00",
            target=binding,
            sites=("resid_post.1",),
            dtype="float32",
        )
        save_vector(folder, {Site(1): torch.ones(WIDTH)}, manifest)
        services.artifacts.register(folder, name="foreign", owner=None)
    response = web.post("/v1/completions", json=body(steering=[item]))
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"].startswith("steering[0]")
    assert code is None or response.json()["error"]["code"] == code


def test_an_uploaded_vector_works_in_the_next_request(web):
    file = save({"direction.1": torch.arange(1, WIDTH + 1, dtype=torch.float32)})
    assert web.post("/v1/artifacts?name=ramp", content=file).status_code == 201
    by_name = complete(web, steering=[{"vector": "ramp", "strength": 2}])
    by_value = complete(web, steering=[{"vector": inline(1), "strength": 2}])
    assert by_name["choices"] == by_value["choices"]
    assert by_name["interlock"]["interventions"][0]["digest"].startswith("art_")


def test_output_that_is_not_finite_is_an_error_and_the_server_goes_on(web):
    plain = complete(web)
    steering = [{"vector": inline(0, 1e37), "strength": 100}] * 8
    response = web.post("/v1/completions", json=body(steering=steering))
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "non_finite"
    assert response.headers["x-should-retry"] == "false"
    assert complete(web)["choices"] == plain["choices"]


def compare(web: httpx.Client, *settings: dict, **fields) -> dict:
    response = web.post("/v1/compare", json=body(settings=list(settings), **fields))
    assert response.status_code == 200, response.text
    return response.json()


def test_settings_side_by_side(web):
    """The texts are those of single requests; divergences are what log-probabilities of whole vocabularies say."""
    steering = [{"vector": inline(1), "strength": 0.3, "apply": {"prompt": "none"}}]
    answer = compare(web, {"name": "plain"}, {}, {"steering": steering}, max_tokens=40)
    plain, same, steered = answer["settings"]
    for compared, single in ((plain, {}), (same, {}), (steered, {"steering": steering})):
        choice = complete(web, max_tokens=40, **single)["choices"][0]
        assert (compared["text"], compared["finish_reason"]) == (choice["text"], choice["finish_reason"])
        assert len(compared["token_ids"]) == 40
    assert same["first_diverging_token"] is None
    assert len(same["kl"]) == 40
    assert max(same["kl"]) < 1e-6
    first = steered["first_diverging_token"]
    assert steered["token_ids"][:first] == plain["token_ids"][:first]
    assert steered["token_ids"][first] != plain["token_ids"][first]
    assert steered["kl"][0] < 1e-6, "the first token is predicted by the prompt, which nothing touches"
    assert steered["max_kl"] == max(steered["kl"]) > 1e-3
    (receipt,) = answer["interlock"]["interventions"]
    assert (receipt["choice"], receipt["prompt_tokens"], receipt["generated_tokens"]) == (2, 0, 39)


def test_a_comparison_ends_like_any_request(web, services):
    poison = {"steering": [{"vector": inline(0, 1e37), "strength": 100}] * 8}
    response = web.post("/v1/compare", json=body(settings=[{}, poison]))
    assert (response.status_code, response.json()["error"]["code"]) == (500, "non_finite")
    response = web.post("/v1/compare", json=body(settings=[{}, {"steering": [{"vector": inline(3)}]}]))
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("settings[1].steering[0]")
    answers: list[dict] = []
    ask = {"max_tokens": 20}
    threads = [threading.Thread(target=lambda: answers.append(compare(web, {}, {}, **ask))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer["settings"][0]["text"] for answer in answers}) == 1
    assert len(answers) == 6
    eventually(lambda: not services.engine.generations())


def test_a_running_stream_can_be_changed(web, services):
    with web.stream("POST", "/v1/completions", json=body(max_tokens=LONG, stream=True)) as response:
        generation = response.headers["x-request-id"]
        lines = response.iter_lines()
        next(lines)
        patch = web.patch(f"/v1/generations/{generation}", json={"steering": [{"vector": inline(1), "strength": 5}]})
        last = [line for line in lines if line.startswith("data: {")][-1]
    assert patch.json()["steering"] == [{"name": "inline", "strength": 5}]
    (receipt,) = json.loads(last.removeprefix("data: "))["interlock"]["interventions"]
    assert 0 < receipt["generated_tokens"] < LONG
    assert receipt["prompt_tokens"] == 0


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_hang_up_leave_nothing_behind(url, services, stream):
    def start() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", httpx.URL(url).port))
        content = json.dumps(body(max_tokens=LONG, stream=stream)).encode()
        head = ["POST /v1/completions HTTP/1.1", "Host: x", "Content-Type: application/json"]
        head += [f"Content-Length: {len(content)}", "", ""]
        connection.sendall("\r\n".join(head).encode() + content)
        return connection

    connections = [start() for _ in range(16)]
    eventually(lambda: len(services.engine.generations()) > 8)
    for connection in connections:
        connection.close()
    eventually(lambda: not services.engine.generations())


@pytest.mark.parametrize("state", ["decode", "score"])
def test_a_client_that_hangs_up_while_texts_are_compared(url, services, monkeypatch, state):
    content = json.dumps(body(prompt="Hello " * 8, settings=[{}] * 4, max_tokens=LONG)).encode()
    head = ["POST /v1/compare HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(content)}"]
    reached = threading.Event()
    forward = services.engine._runner.forward

    def slowed(batch):
        if any(row.state == state for row in batch.rows):
            reached.set()
            time.sleep(0.02)
        return forward(batch)

    monkeypatch.setattr(services.engine._runner, "forward", slowed)
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + content)
        assert reached.wait(20)
    eventually(lambda: not services.engine.generations())


def test_more_clients_than_places_all_get_an_answer(web, services):
    places = services.engine.limits.max_batch + services.engine.limits.max_waiting
    statuses: list[int] = []

    def ask() -> None:
        response = web.post("/v1/completions", json=body(max_tokens=4))
        statuses.append(response.status_code)

    response = web.post("/v1/completions", json=body(prompt=["x"] * (places + 1)))
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 24
