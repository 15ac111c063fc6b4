"""``interlock jobs`` against canned answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.cli import jobs
from tests.server.cli.conftest import Ran, StandIn

Interlock = Callable[..., Ran]


def job(state: str, **more: Any) -> dict[str, Any]:
    return {"id": "job_1", "kind": "train_switch", "name": "safe", "state": state, "created_at": 0.0, **more}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)


def test_submit_sends_file_and_single_parameters(interlock: Interlock, server: StandIn, tmp_path: Path) -> None:
    server.answer("POST", "/v1/jobs", job("queued"), status=202)
    file = tmp_path / "parameters.json"
    file.write_text('{"steps": 10, "base": "other"}')
    ran = interlock(
        *("jobs", "submit", "train_switch", "--name", "safe", "--parameters", str(file)),
        *("--set", "base=base", "--set", 'sites=[{"layer": 2}]', "--json"),
    )
    assert (ran.code, ran.json["state"]) == (0, "queued")
    assert json.loads(server.asked[0].body) == {
        "kind": "train_switch",
        "name": "safe",
        "parameters": {"steps": 10, "base": "base", "sites": [{"layer": 2}]},
    }
    assert server.asked[0].authorization == "Bearer a-key"


@pytest.mark.parametrize("item", ["steps", "=3"])
def test_submit_refuses_a_malformed_parameter(interlock: Interlock, server: StandIn, item: str) -> None:
    assert interlock("jobs", "submit", "train_switch", "--name", "safe", "--set", item).code == 2
    assert server.asked == []


@pytest.mark.parametrize("text", ["[1]", "{"])
def test_submit_refuses_a_file_that_is_no_object(interlock: Interlock, tmp_path: Path, text: str) -> None:
    file = tmp_path / "parameters.json"
    file.write_text(text)
    ran = interlock("jobs", "submit", "train_switch", "--name", "safe", "--parameters", str(file))
    assert ran.code == 2
    assert "JSON" in ran.err


def test_watch_follows_to_the_end(interlock: Interlock, server: StandIn) -> None:
    progress = {"stage": "train", "step": 5, "total": 10, "metrics": {"kl": 0.25}}
    done = job("succeeded", artifacts=["art_1"], artifact_names=["safe"])
    server.answer("GET", "/v1/jobs/job_1", job("queued"), job("running", progress=progress), done)
    ran = interlock("jobs", "watch", "job_1", "--json")
    assert (ran.code, ran.json) == (0, done)
    assert len(server.asked) == 3


def test_watch_fails_with_the_reason_of_the_job(interlock: Interlock, server: StandIn) -> None:
    server.answer("GET", "/v1/jobs/job_1", job("failed", error={"code": "data", "message": "no rows left"}))
    ran = interlock("jobs", "watch", "job_1")
    assert ran.code == 1
    assert ran.err.splitlines()[-1] == "error: job job_1 failed: no rows left"


def test_list_and_show(interlock: Interlock, server: StandIn) -> None:
    progress = {"stage": "train", "step": 5, "total": 10, "metrics": {}}
    server.answer("GET", "/v1/jobs", {"object": "list", "data": [job("running", progress=progress)]})
    server.answer("GET", "/v1/jobs/job_1", job("running", parameters={"steps": 10}))
    assert "train 5/10" in interlock("jobs", "list").out
    assert interlock("jobs", "list", "--json").json["data"][0]["id"] == "job_1"
    assert '{"steps": 10}' in interlock("jobs", "show", "job_1").out


def test_cancel_and_resume_and_log(interlock: Interlock, server: StandIn) -> None:
    server.answer("POST", "/v1/jobs/job_1/cancel", job("cancelled"))
    server.answer("POST", "/v1/jobs/job_1/resume", job("queued"))
    server.answer("GET", "/v1/jobs/job_1/log", b"one\ntwo\n")
    assert interlock("jobs", "cancel", "job_1").code == 0
    assert "queued" in interlock("jobs", "resume", "job_1").out
    assert interlock("jobs", "log", "job_1").out == "one\ntwo\n"


def test_a_refusal_shows_the_servers_message_and_request(interlock: Interlock, server: StandIn) -> None:
    server.answer("POST", "/v1/jobs/job_1/cancel", {"error": {"message": "it has ended", "param": None}}, status=409)
    ran = interlock("jobs", "cancel", "job_1")
    assert (ran.code, ran.err.strip()) == (1, "error: it has ended [request req-1]")


def test_a_missing_key_names_the_variable(interlock: Interlock, server: StandIn) -> None:
    server.answer("GET", "/v1/jobs", {"error": {"message": "no API key"}}, status=401)
    assert "set INTERLOCK_API_KEY" in interlock("jobs", "list").err


def test_something_that_is_no_interlock(interlock: Interlock, server: StandIn) -> None:
    server.answer("GET", "/v1/jobs", b"<html>")
    assert "is it an Interlock server?" in interlock("jobs", "list").err
    server.answer("GET", "/v1/jobs", b"bad gateway", status=502)
    assert "502" in interlock("jobs", "list").err
