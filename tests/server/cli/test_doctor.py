"""``interlock doctor`` as it is called: exit codes, JSON, and what it says of a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mappers.organisms import organism_path
from tests.server.cli.conftest import Ran, StandIn

CAPABILITIES = {
    "model": {"name": "tuned", "device": "cpu", "dtype": "float32"},
    "limits": {"max_batch": 32, "context": 512, "kv_bytes": 2**30, "prefix_bytes": 2**29},
    "default_profile": None,
    "default_switch": "safe",
}


@pytest.fixture
def doctor(interlock: Callable[..., Ran], server: StandIn, tmp_path: Path) -> Callable[..., Ran]:
    server.answer("GET", "/health/live", {"status": "ok"})
    server.answer("GET", "/health/ready", {"status": "ok"})
    server.answer("GET", "/v1/capabilities", CAPABILITIES)
    return lambda *options: interlock("doctor", "--data-dir", str(tmp_path / "data"), *options)


def test_all_is_well(doctor: Callable[..., Ran]) -> None:
    ran = doctor("--json", "--model", str(organism_path("llama-small-base")))
    found = {one["check"]: one for one in ran.json["findings"]}
    assert (ran.code, ran.json["failed"]) == (0, 0)
    told = found["server"]["found"]
    assert "32 places of 512 tokens, memory planned for keys and values 1.0 GiB, for prefixes 512 MiB" in told
    assert told.endswith("on by default: safe")
    assert found["tokenizer"]["status"] == "ok"


def test_people_get_a_table(doctor: Callable[..., Ran]) -> None:
    ran = doctor()
    assert ran.code == 0
    assert "Interlock, examined" in ran.out
    assert "SQLite" in ran.out


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/health/ready", {"error": {"message": "not ready: draining"}}, 503, "not ready: draining"),
        ("/v1/capabilities", {"error": {"message": "unknown key"}}, 401, "unknown key"),
    ],
)
def test_a_server_that_is_not_well_fails(
    doctor: Callable[..., Ran], server: StandIn, path: str, body: object, status: int, message: str
) -> None:
    server.answer("GET", path, body, status=status)
    ran = doctor("--json")
    assert (ran.code, ran.json["failed"]) == (1, 1)
    assert message in ran.json["findings"][-1]["found"]


def test_a_server_that_was_named_has_to_be_there(doctor: Callable[..., Ran]) -> None:
    ran = doctor("--json", "--url", "http://127.0.0.1:9")
    assert ran.code == 1
    assert "no server answers" in ran.json["findings"][-1]["found"]


def test_one_that_was_not_named_need_not(doctor: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTERLOCK_URL")
    monkeypatch.setattr("server.cli.doctor.DEFAULT_URL", "http://127.0.0.1:9")
    ran = doctor("--json")
    assert (ran.code, ran.json["findings"][-1]["found"]) == (0, "none answers at http://127.0.0.1:9")


def test_a_variable_that_serve_would_refuse_is_found(
    doctor: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERLOCK_DATADIR", "/x")
    ran = doctor("--json")
    (found,) = [one for one in ran.json["findings"] if one["check"] == "environment"]
    assert ran.code == 1
    assert "did you mean INTERLOCK_DATA_DIR?" in found["found"]
