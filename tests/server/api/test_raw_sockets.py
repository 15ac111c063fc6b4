"""Bytes that are not quite HTTP, sent to the listener: refused or hung up on, and the next request is answered."""

from __future__ import annotations

import http.client
import json
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
from fastapi import FastAPI

from server import connection
from server.api.middleware import HEAD_BYTES
from tests.server.api.conftest import COMPLETION, LEAK, bearer, ring
from tests.server.listening import serving

HEAD = b"Host: x\r\nAuthorization: Bearer alice\r\n"
GET = b"GET /v1/models HTTP/1.1\r\n" + HEAD
POST = b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n" + HEAD
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = json.dumps(COMPLETION).encode()
CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)
END = b"\r\n"


def get(target: bytes) -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\n" + HEAD + END


def sized(length: bytes) -> bytes:
    return POST + b"Content-Length: " + length + b"\r\n\r\n" + BODY


CORPUS = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    "HTTP/0.9": b"GET /v1/models\r\n\r\n",
    "HTTP/0.9, one line": b"GET /v1/models\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.0": b"GET /v1/models HTTP/3.0\r\n" + HEAD + END,
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: y\r\n\r\n",
    "empty line first, then nonsense": b"\r\n\r\n\x00\x01\x02\r\n\r\n",
    "no end of the head": GET,
    "head of 100 KB in one field": GET + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
    "head of 100 KB in many fields": GET + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 90) for i in range(1000)) + END,
    "head of 100 KB without an end": GET + b"X: " + b"a" * 100_000,
    "path of 100 KB": get(b"/" + b"a" * 100_000),
    "query of 100 KB": get(b"/v1/artifacts?kind=" + b"a" * 100_000),
    "NUL in the path": get(b"/v1/models\0"),
    "NUL in a header": GET + b"X: a\0b\r\n\r\n",
    "NUL encoded in the path": get(b"/v1/models/%00"),
    "NUL encoded in an id": get(b"/v1/artifacts/a%00"),
    "bytes over 127 in the path": get(b"/v1/\xff\xfe"),
    "overlong UTF-8 in the path": get(b"/v1/artifacts/%c0%ae%c0%ae"),
    "space in the path": get(b"/v1/mod els"),
    "bare CR in a header": GET + b"X: a\rb\r\n\r\n",
    "space before a colon": GET + b"X : a\r\n\r\n",
    "header without a name": GET + b": a\r\n\r\n",
    "absolute form": get(b"http://x/v1/models"),
    "absolute form of another host": get(b"http://evil.example/v1/models"),
    "encoded dots": get(b"/v1/artifacts/%2e%2e%2f%2e%2e%2fetc%2fpasswd/download"),
    "no slash first": get(b"v1/models"),
    "star": b"OPTIONS * HTTP/1.1\r\n" + HEAD + END,
    "CONNECT": b"CONNECT evil.example:443 HTTP/1.1\r\n" + HEAD + END,
    "TRACE": b"TRACE /v1/models HTTP/1.1\r\n" + HEAD + END,
    "unknown method": b"BREW /v1/models HTTP/1.1\r\n" + HEAD + END,
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + BODY,
    "two lengths in one field": sized(b"5, 6"),
    "length of 30 digits": sized(b"9" * 30),
    "length of 3 MB": sized(b"3000000"),
    "negative length": sized(b"-1"),
    "signed length": sized(b"+5"),
    "hexadecimal length": sized(b"0x5"),
    "length with an underscore": sized(b"1_0"),
    "length beyond the body": sized(b"%d" % (len(BODY) + 10)),
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "chunks and length": CHUNKED[:-2] + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
    "other transfer coding": POST + b"Transfer-Encoding: gzip\r\n\r\n" + BODY,
    "two transfer codings": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNK,
    "transfer coding twice": CHUNKED[:-2] + b"Transfer-Encoding: identity\r\n\r\n" + CHUNK,
    "transfer coding in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + CHUNK + b"0\r\n\r\n",
    "chunk size that is none": CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n",
    "chunk of negative size": CHUNKED + b"-5\r\nabcde\r\n0\r\n\r\n",
    "chunk of 2**80": CHUNKED + b"1" + b"0" * 20 + b"\r\nabc",
    "chunk longer than it says": CHUNKED + b"2\r\nabcdef\r\n0\r\n\r\n",
    "chunk that ends early": CHUNKED + b"5\r\nabc",
    "chunk with LF alone": CHUNKED + CHUNK.replace(b"\r\n", b"\n") + b"0\n\n",
    "chunk extension of 100 KB": CHUNKED + b"1;" + b"a" * 100_000,
    "chunk without an end": CHUNKED + CHUNK,
    "rubbish after a good chunk": CHUNKED + CHUNK + b"\xff" * 50 + b"\r\n",
}


@pytest.fixture
def url(build: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(connection, "RECEIVE_S", 0.5)
    with serving(build(keys=ring(alice={"infer"}))) as address:
        yield address


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        yield client


def problem_of(url: str, payload: bytes) -> str | None:
    """What is wrong with the answer to ``payload``; to hang up is never wrong."""
    with connected(url) as client:
        try:
            client.sendall(payload)
            answer = http.client.HTTPResponse(client)
            answer.begin()
            body = answer.read()
        except ConnectionError:
            return None
        except (TimeoutError, http.client.HTTPException) as error:
            return repr(error)
    if not 400 <= answer.status < 500:
        return f"status {answer.status}"
    if leaked := LEAK.search(body.decode()):
        return f"tells {leaked[0]!r}"
    error = json.loads(body)["error"]
    return None if error["request_id"] == answer.headers["X-Request-Id"] else f"no request id: {error}"


def test_whatever_is_sent_is_refused_and_the_server_goes_on(url: str, caplog: pytest.LogCaptureFixture) -> None:
    problems = {name: problem_of(url, payload) for name, payload in CORPUS.items()}
    assert {name: problem for name, problem in problems.items() if problem} == {}
    assert httpx.post(f"{url}/v1/completions", json=COMPLETION, headers=bearer("alice")).status_code == 200
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def answers(url: str, payload: bytes) -> list[int]:
    """Status of every answer to ``payload``, whose last request asks for the connection to be closed."""
    with connected(url) as client:
        client.sendall(payload)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


CLOSE = b"Connection: close\r\n\r\n"


def test_pipelined_requests_are_answered_in_order(url: str) -> None:
    payload = (GET + END) * 20 + CHUNKED + CHUNK + b"0\r\n\r\n" + get(b"/v1/none") + sized(b"%d" % len(BODY))
    assert answers(url, payload + GET + CLOSE) == [200] * 20 + [200, 404, 200, 200]


@pytest.mark.parametrize("body", [GET + END, b"5\r\n" + GET + END])
def test_no_request_hides_in_the_body_of_another(url: str, body: bytes) -> None:
    """Nobody reads the body of a request without a key, and what is left of it is no request."""
    outer = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert answers(url, outer + body + GET + CLOSE) == [401, 200]


def test_lengths_and_chunks_together_end_the_connection(url: str) -> None:
    payload = POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert answers(url, payload + GET + CLOSE) == [400]


@pytest.mark.parametrize(("excess", "status"), [(0, 200), (1, 431)])
def test_the_head_is_counted_however_it_arrives(url: str, excess: int, status: int) -> None:
    """The lengths of the path and of ``name: value CRLF``; the request line is not counted further."""
    fields = HEAD + b"Connection: close\r\nX: "
    filler = b"a" * (HEAD_BYTES - len(b"/v1/models") - len(fields) - len(END) + excess)
    assert answers(url, b"GET /v1/models HTTP/1.1\r\n" + fields + filler + END + END) == [status]


def test_lines_may_end_in_a_line_feed_alone(url: str) -> None:
    """RFC 9112, section 2.2, allows it in the head; never in the framing of chunks, where it could hide a request."""
    assert answers(url, (GET + CLOSE).replace(b"\r\n", b"\n")) == [200]
