from __future__ import annotations

import pytest

from mappers.errors import InterlockError
from server import errors
from server.api.errors import STATUS, error_body, status_of
from tests.server.api.conftest import COMPLETION


def family(cls: type) -> list[type]:
    return [cls, *(member for child in cls.__subclasses__() for member in family(child))]


def test_every_error_class_has_a_row():
    ours = {cls for cls in family(InterlockError) if cls.__module__ in ("mappers.errors", "server.errors")}
    assert ours == set(STATUS)
    assert 422 not in {status for status, _ in STATUS.values()}


def test_a_class_of_its_own_gets_the_row_of_its_parent():
    class Special(errors.Conflict):
        pass

    assert status_of(Special("x")) == (409, "conflict_error")


@pytest.mark.parametrize(
    ("code", "status"), [("non_finite", 500), ("engine_failed", 500), ("out_of_memory", 503), ("shutdown", 503)]
)
def test_a_failed_generation_says_whether_to_try_again(code, status):
    assert status_of(errors.GenerationFailed("x", code=code))[0] == status


def test_the_body_names_field_code_and_request():
    body = error_body(errors.InvalidRequest("wrong", param="n", code="too_many"), "req_1")
    assert body == {
        "error": {
            "message": "wrong",
            "type": "invalid_request_error",
            "param": "n",
            "code": "too_many",
            "request_id": "req_1",
        }
    }


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (errors.Overloaded("full", retry_after_s=3), 429, ("retry-after", "3")),
        (errors.Unavailable("draining", retry_after_s=7), 503, ("retry-after", "7")),
        (errors.Conflict("running"), 409, None),
    ],
)
def test_what_the_engine_refuses_is_told(client, engine, monkeypatch, error, status, header):
    def refuse(request, sink):
        raise error

    monkeypatch.setattr(engine, "submit", refuse)
    for stream in (False, True):
        response = client.post("/v1/completions", json=COMPLETION | {"stream": stream})
        assert response.status_code == status
        assert header is None or response.headers[header[0]] == header[1]


def test_a_bug_tells_the_caller_nothing_but_an_id(connect, engine, monkeypatch):
    def fail(request, sink):
        raise RuntimeError("secret /home/somebody/model")

    monkeypatch.setattr(engine, "submit", fail)
    response = connect(raise_bugs=False).post("/v1/completions", json=COMPLETION)
    error = response.json()["error"]
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert error["code"] == "internal_error"
    assert error["request_id"] == response.headers["x-request-id"]
    assert error["request_id"] in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2/models", 404), ("GET", "/v1/completions", 405), ("DELETE", "/v1/models", 405), ("POST", "/", 404)],
)
def test_routes_and_methods_that_do_not_exist(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["request_id"] == response.headers["x-request-id"]
