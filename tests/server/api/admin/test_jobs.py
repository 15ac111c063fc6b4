from __future__ import annotations

from dataclasses import replace

import pytest

from server.jobs.model import JobError, JobEvent, JobProgress, JobState
from server.policy.policy import Policy
from tests.server.api.conftest import bearer, ring
from tests.server.api.fakes import FakeJobs

JOB = {"kind": "transfer_vector", "name": "v", "parameters": {"vector": "a", "mapper": "b"}}


@pytest.fixture
def jobs() -> FakeJobs:
    return FakeJobs()


@pytest.fixture
def client(connect, jobs):
    return connect(jobs=jobs)


def test_a_job_is_accepted_and_shown(client):
    response = client.post("/v1/jobs", json=JOB)
    job = response.json()
    assert response.status_code == 202
    assert (job["id"], job["object"], job["kind"], job["name"], job["state"]) == (
        "job_1",
        "job",
        "transfer_vector",
        "v",
        "queued",
    )
    assert job["parameters"]["rule"] == "pairs"
    assert client.get("/v1/jobs/job_1").json() == job
    assert client.get("/v1/jobs").json() == {"object": "list", "data": [job]}


def test_progress_error_and_artifacts_are_told(client, jobs):
    client.post("/v1/jobs", json=JOB)
    jobs.jobs["job_1"] = replace(
        jobs.jobs["job_1"],
        state=JobState.FAILED,
        progress=JobProgress("train", 3, 10, {"loss": 0.5}),
        error=JobError("training", "not finite"),
        artifacts=("art_1",),
        artifact_names=("v",),
    )
    job = client.get("/v1/jobs/job_1").json()
    assert job["progress"] == {"stage": "train", "step": 3, "total": 10, "metrics": {"loss": 0.5}}
    assert job["error"] == {"code": "training", "message": "not finite"}
    assert (job["artifacts"], job["artifact_names"]) == (["art_1"], ["v"])


def test_cancel_resume_and_log(client):
    client.post("/v1/jobs", json=JOB)
    assert client.post("/v1/jobs/job_1/cancel").json()["state"] == "cancelled"
    assert client.post("/v1/jobs/job_1/cancel").status_code == 409
    assert client.post("/v1/jobs/job_1/resume").json()["state"] == "queued"
    log = client.get("/v1/jobs/job_1/log")
    assert (log.text, log.headers["content-type"]) == ("log of job_1\n", "text/plain; charset=utf-8")


def test_events_carry_ids_and_continue_after_the_last_one_seen(client, jobs):
    client.post("/v1/jobs", json=JOB)
    jobs.happened = [
        JobEvent(1, "state", 1.0, {"state": "running"}),
        JobEvent(2, "progress", 2.0, {"stage": "train", "step": 1}),
    ]
    whole = client.get("/v1/jobs/job_1/events")
    assert whole.headers["content-type"].startswith("text/event-stream")
    first, second, _ = whole.text.split("\n\n")
    assert first.splitlines() == ["event: state", 'data: {"at": 1.0, "state": "running"}', "id: 1"]
    assert second.splitlines()[0] == "event: progress"
    rest = client.get("/v1/jobs/job_1/events", headers={"Last-Event-ID": "1"})
    assert rest.text == second + "\n\n"


@pytest.mark.parametrize("last", ["-1", "x", "1.5", "9" * 400])
def test_a_bad_last_event_id_is_refused(client, last):
    client.post("/v1/jobs", json=JOB)
    response = client.get("/v1/jobs/job_1/events", headers={"Last-Event-ID": last})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "last-event-id")


@pytest.mark.parametrize("suffix", ["", "/log", "/events", "/cancel", "/resume"])
def test_an_unknown_job_is_not_found(client, suffix):
    method = "POST" if suffix in ("/cancel", "/resume") else "GET"
    assert client.request(method, f"/v1/jobs/job_9{suffix}").status_code == 404


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"kind": "mine_bitcoin"}, "kind"),
        ({"name": "../x"}, "name"),
        ({"name": None}, "name"),
        ({"parameters": {"vector": "a"}}, "parameters.mapper"),
        ({"parameters": {"vector": "a", "mapper": "b", "path": "/etc"}}, "parameters.path"),
        ({"parameters": {"vector": "a", "mapper": "b", "rule": "magic"}}, "parameters.rule"),
        ({"parameters": {"vector": "a", "mapper": "b", "rescale": {"to": "rms", "fraction": 0}}}, None),
        ({"owner": "me"}, "owner"),
    ],
)
def test_a_wrong_field_is_named(client, jobs, change, param):
    response = client.post("/v1/jobs", json=JOB | change)
    assert response.status_code == 400
    assert param is None or response.json()["error"]["param"] == param
    assert not jobs.jobs


@pytest.mark.parametrize(("limit", "status"), [("1", 200), ("1000", 200), ("0", 400), ("1001", 400), ("x", 400)])
def test_lists_are_bounded(client, limit, status):
    assert client.get(f"/v1/jobs?limit={limit}").status_code == status


def test_a_job_cannot_replace_the_default_switch(connect):
    client = connect(policy=Policy(default_switch="v"), keys=ring(trainer={"train"}))
    assert client.post("/v1/jobs", json=JOB, headers=bearer("trainer")).status_code == 403


def test_only_admins_let_a_job_go_before_others(connect):
    client = connect(keys=ring(trainer={"train"}, boss={"train", "admin"}))
    urgent, patient = JOB | {"priority": 1}, JOB | {"priority": -1}
    refused = client.post("/v1/jobs", json=urgent, headers=bearer("trainer"))
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
    assert client.post("/v1/jobs", json=patient, headers=bearer("trainer")).json()["priority"] == -1
    assert client.post("/v1/jobs", json=urgent, headers=bearer("boss")).json()["priority"] == 1
    for priority in (11, -11, 1.5, "1", None):
        assert client.post("/v1/jobs", json=JOB | {"priority": priority}, headers=bearer("boss")).status_code == 400
