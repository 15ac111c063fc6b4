from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from server.api.app import create_app
from tests.server.api.conftest import COMPLETION, bearer, ring


def test_every_answer_has_an_id_of_its_own(client):
    ids = [client.get("/health/live").headers["x-request-id"] for _ in range(2)]
    assert ids[0] != ids[1]
    assert all(one.startswith("req_") for one in ids)


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        (None, "127.0.0.1:8000", 200),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", 200),
        ("http://localhost:8000", "localhost:8000", 200),
        ("http://[::1]:8000", "[::1]:8000", 200),
        ("http://evil.example", "127.0.0.1:8000", 403),
        ("http://127.0.0.1:9000", "127.0.0.1:8000", 403),
        ("null", "127.0.0.1:8000", 403),
        ("", "127.0.0.1:8000", 403),
        ("http://[", "127.0.0.1:8000", 403),
        ("http://127.0.0.1:8000@evil.example", "127.0.0.1:8000", 403),
        # A name of the attacker's that was made to resolve to this machine.
        ("http://evil.example:8000", "evil.example:8000", 403),
    ],
)
def test_pages_of_other_origins_change_nothing(client, engine, origin, host, status):
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    response = client.post("/v1/completions", json=COMPLETION, headers=headers)
    assert response.status_code == status
    assert bool(engine.requests) == (status == 200)
    if status == 403:
        assert response.json()["error"]["code"] == "foreign_origin"
        assert response.json()["error"]["request_id"] == response.headers["x-request-id"]
    assert client.get("/v1/models", headers=headers).status_code == 200


def test_a_server_with_keys_may_have_a_name(make_services):
    with_keys = create_app(make_services(keys=ring(alice={"infer"})))
    headers = {"Host": "llm.example", "Origin": "https://llm.example"} | bearer("alice")
    response = TestClient(with_keys).post("/v1/completions", json=COMPLETION, headers=headers)
    assert response.status_code == 200
