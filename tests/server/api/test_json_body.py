import json
import math

import pytest
from pydantic import ValidationError

from server.api.json_body import MAX_DEPTH, MAX_ITEMS, MAX_MEMBERS, parse
from server.api.schemas.bounds import BODY_BYTES
from server.api.schemas.completions import CompletionRequest
from server.errors import InvalidRequest
from tests.server.api.conftest import COMPLETION, LEAK

JSON = {"Content-Type": "application/json"}
VALID = json.dumps(COMPLETION)


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"[]",
        b'"text"',
        b"null",
        b"5",
        VALID.encode("utf-16"),
        b"\xef\xbb\xbf" + VALID.encode(),
        b"\xff\xfe{}",
        VALID.replace('"Once"', '"\xff"').encode("latin-1"),
        VALID.replace("4}", "NaN}").encode(),
        VALID.replace("4}", "Infinity}").encode(),
        VALID.replace("4}", "-Infinity}").encode(),
        VALID.replace("4}", "1e400}").encode(),
        VALID.replace("4}", "-1e400}").encode(),
        VALID.replace("4}", "1" + "0" * 400 + "}").encode(),
        VALID.replace("4}", "1" + "0" * 5000 + "}").encode(),
        VALID.replace("4}", '4, "max_tokens": 5}').encode(),
        VALID.replace("Once", "\\ud800").encode(),
        VALID.replace("4}", '4, "\\udfff": 5}').encode(),
        nested(MAX_DEPTH + 1),
        nested(100_000),
        b"[" * 100_000,
        VALID.encode() + b"x",
    ],
)
def test_hostile_json_is_refused_and_the_server_goes_on(client, body):
    response = client.post("/v1/completions", content=body, headers=JSON)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert client.post("/v1/completions", json=COMPLETION).status_code == 200


HOSTILE = {
    "two of one key": b'{"a": 1, "a": 2}',
    "two of one key, one escaped": rb'{"a": 1, "\u0061": 2}',
    "two of one key far inside": b'{"a": [{"b": {"c": 1, "c": 1}}]}',
    "objects too deep": nested(MAX_DEPTH + 1),
    "lists 2 MB deep": b"[" * (BODY_BYTES - 1),
    "objects 2 MB deep": b'{"a":' * (BODY_BYTES // 5),
    "half a surrogate pair": rb'{"a": "\ud800"}',
    "a pair the wrong way round": rb'{"a": "\udc00\ud800"}',
    "half a pair as a key": rb'{"\udfff": 1}',
    "surrogates in UTF-8": b'{"a": "\xed\xa0\x80"}',
    "overlong UTF-8": b'{"a": "\xc0\xaf"}',
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "1e400": b'{"a": [1, {"b": 1e400}]}',
    "5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "2 MB of digits": b'{"a": ' + b"9" * (BODY_BYTES - 100) + b"}",
    "exponent of 1,000 digits": b'{"a": 1e' + b"9" * 1000 + b"}",
    "leading zero": b'{"a": 01}',
    "hexadecimal": b'{"a": 0x1}',
    "single quotes": b"{'a': 1}",
    "comma at the end": b'{"a": 1,}',
    "comment": b'{"a": 1} // b',
    "control character": b'{"a": "\x01"}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "UTF-16, no mark": "{}".encode("utf-16-le"),
    "UTF-32": "{}".encode("utf-32"),
    "two values": b"{}{}",
    "NUL after": b"{}\0",
    "newline, then more": b"{}\n[1]",
    "nothing": b"",
    "spaces": b"  \n ",
    "not closed": b'{"a": [1, 2',
    "no object": b'["a"]',
}


def test_no_route_takes_hostile_json(client):
    """Each is told with a reason, and the client's words (a prompt, perhaps) are not repeated."""
    paths = client.get("/openapi.json").json()["paths"]
    asked = [
        (method, path.format(name="x", generation_id="x"))
        for path, methods in paths.items()
        for method, operation in methods.items()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    ]
    assert len(asked) >= 11
    for method, path in asked:
        for name, body in HOSTILE.items():
            if len(body) > 10_000 and path != "/v1/completions":
                continue
            answer = client.request(method, path, content=body, headers=JSON)
            assert answer.status_code == 400, f"{name} to {path}"
            error = answer.json()["error"]
            assert error["request_id"] == answer.headers["x-request-id"]
            assert "body" in error["message"] or error["param"], f"{name} to {path}"
            assert not LEAK.search(error["message"]), f"{name} to {path}"


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx"]
)
def test_only_json_is_read(client, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    response = client.post("/v1/completions", content=VALID, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "Content-Type"


def test_a_charset_may_be_named(client):
    response = client.post(
        "/v1/completions", content=VALID, headers={"Content-Type": "application/json; charset=utf-8"}
    )
    assert response.status_code == 200


@pytest.mark.parametrize(("excess", "status"), [(0, 400), (1, 413)])
def test_the_body_is_bounded_where_its_length_is_announced(client, excess, status):
    body = json.dumps(COMPLETION | {"user": ""})
    body = body.replace('"user": ""', '"user": "' + "x" * (BODY_BYTES - len(body) + excess) + '"')
    assert len(body) == BODY_BYTES + excess
    assert client.post("/v1/completions", content=body, headers=JSON).status_code == status


@pytest.mark.parametrize(("excess", "status"), [(0, 400), (1, 413)])
def test_every_byte_counts_where_the_length_is_not_announced(client, excess, status):
    def chunks():
        yield b" " * (BODY_BYTES - 1)
        yield b" "
        yield b" " * excess

    assert client.post("/v1/completions", content=chunks(), headers=JSON).status_code == status


def test_the_body_is_counted_where_its_length_is_not_announced(client):
    def chunks():
        yield b'{"prompt": "'
        for _ in range(BODY_BYTES // 65536 + 1):
            yield b"x" * 65536

    response = client.post("/v1/completions", content=chunks(), headers=JSON)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"


def test_parse_keeps_what_is_allowed():
    assert parse('{"a": [1, 2.5, "ü", "\\ud83d\\ude00", null, true]}'.encode()) == {
        "a": [1, 2.5, "ü", "😀", None, True]
    }
    assert parse(nested(MAX_DEPTH))["a"] is not None


def test_depth_counts_empty_containers():
    parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(InvalidRequest, match="nested deeper"):
        parse(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


def test_small_numbers_are_finite():
    assert parse(b"1e-400") == 0
    assert math.isclose(parse(b"1.5e300"), 1.5e300)


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ({f"k{i}": 1 for i in range(MAX_MEMBERS)}, True),
        ({f"k{i}": 1 for i in range(MAX_MEMBERS + 1)}, False),
        (["x"] * MAX_ITEMS, True),
        (["x"] * (MAX_ITEMS + 1), False),
        ([7] * (MAX_ITEMS + 1), True),
        ([True] * (MAX_ITEMS + 1), False),
    ],
)
def test_objects_and_lists_are_bounded(value, accepted):
    body = json.dumps({"a": [value]}).encode()
    if accepted:
        assert parse(body) == {"a": [value]}
    else:
        with pytest.raises(InvalidRequest, match="more than"):
            parse(body)


@pytest.mark.parametrize("prompt", [[-1] * 300_000, [[-1]] * 4000, [2**40] * 100_000])
def test_only_the_first_of_many_errors_is_looked_for(prompt):
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate(COMPLETION | {"prompt": prompt})
    assert caught.value.error_count() <= 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"temperature": NaN}', "temperature"),
        ('{"a": 1, "logit_bias": {"5": 1, "7": -Infinity}}', "logit_bias.7"),
        ('{"steering": [{"strength": 1}, {"strength": 1e400}]}', "steering[1].strength"),
        ("NaN", None),
        ('{"n": 1, "x": {"n": 2, "m": 3, "m": 4}}', "m"),
        ('{"top_p": 1, "top_p": NaN}', "top_p"),
    ],
)
def test_the_field_that_is_no_json_is_named(body, param):
    with pytest.raises(InvalidRequest) as caught:
        parse(body.encode())
    assert caught.value.param == param
